"""Terminals of older encodings and closed streams: text that can be read, or one line, and never a traceback."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact
from lucid_deploy.cli import main
from tests.patience import PATIENCE

Exported = Callable[..., tuple[Path, Artifact]]
COMMAND = [sys.executable, "-m", "lucid_deploy.cli"]
SAY = """
from lucid_deploy.cli._streams import prepare_streams
prepare_streams()
print("‖L⁻¹‖₂ … 日 \\ud800")
"""


def run(*arguments: str, encoding: str = "utf-8") -> tuple[int, str, str]:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(arguments, env=environment, capture_output=True, check=False, timeout=PATIENCE)
    return done.returncode, done.stdout.decode(encoding), done.stderr.decode(encoding)


def redirected(arguments: list[str], how: str) -> subprocess.CompletedProcess[str]:
    line = ["bash", "-c", f'"$@" {how}', "bash", *COMMAND, *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=PATIENCE)


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("ascii", "||L^-1||2 ... \\u65e5 \\ud800"),
        ("latin-1", "||L^-¹||2 ... \\u65e5 \\ud800"),
        ("utf-8", "‖L⁻¹‖₂ … 日 \\ud800"),
    ],
)
def test_what_an_encoding_lacks_is_written_otherwise(encoding: str, said: str) -> None:
    assert run(sys.executable, "-c", SAY, encoding=encoding) == (0, f"{said}\n", "")


def test_help() -> None:  # of ASCII click believes nothing, and writes UTF-8
    code, said, error = run(*COMMAND, "serve", "--help", encoding="latin-1")
    assert (code, error) == (0, "") and "With ray: scale between this many engines ..." in " ".join(said.split())


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_tables(encoding: str, exported: Exported) -> None:
    code, said, error = run(*COMMAND, "inspect", str(exported()[1].directory), encoding=encoding)
    assert (code, error) == (0, "") and "past_key_values" in said


def test_a_closed_stdout_is_one_line(exported: Exported) -> None:
    done = redirected(["inspect", str(exported()[1].directory)], ">&-")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith("Error: stdout is closed")


@pytest.mark.parametrize("how", ["2>&-", "<&-", "<&- 2>&-", "| head -c 1"])
def test_other_closed_streams(how: str, exported: Exported) -> None:
    done = redirected(["run", str(exported()[1].directory), "--prompt-ids", "5", "-n", "4", "--ignore-eos"], how)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert len(done.stdout) == 1 or done.stdout.count(",") == 3


@pytest.fixture
def no_reader() -> Iterator[int]:
    """The writing end of a pipe whose other end is closed."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "words", [["--help"], ["run", "--help"], ["inspect", "{}"], ["run", "{}", "--json", "-n", "2"]]
)
def test_results_without_a_reader_end_as_by_sigpipe_and_are_no_failed_check(
    words: list[str], unbuffered: str, no_reader: int, exported: Exported
) -> None:
    """With rich the status was 1, and what Python still held 120, with two lines of its own."""
    command = [*COMMAND, *(word.format(exported()[1].directory) for word in words)]
    command += ["--prompt-ids", "5"] if "--json" in words else []
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(
        command, env=environment, stdout=no_reader, stderr=subprocess.PIPE, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 141 and "Broken" not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_remarks_without_a_reader_take_no_result_away(unbuffered: str, no_reader: int, exported: Exported) -> None:
    """rich led stdout to nowhere: the result was lost, and where a thread had spoken of progress the status was 0."""
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    directory = str(exported()[1].directory)
    for words, status in ((["-n", "4", "--ignore-eos"], 0), (["-n", "0"], 2)):
        command = [*COMMAND, "run", directory, "--prompt-ids", "5", *words]
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=no_reader, text=True, check=False, timeout=PATIENCE
        )
        assert done.returncode == status and done.stdout.count(",") == (0 if status else 3)


def test_progress_without_a_reader_takes_no_result_away(no_reader: int) -> None:
    program = """if True:
        import time
        from lucid_deploy.cli import _console
        _console.INTERVAL = 0.01
        with _console.progress("Working"):
            while not _console.console_err.quiet:  # until it was to be said
                time.sleep(0.01)
        print("result")"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=no_reader, text=True, check=False, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (0, "result\n")


def test_a_stdin_that_cannot_be_read_is_one_line(with_tokenizer: Path, tmp_path: Path) -> None:
    done = redirected(["chat", str(with_tokenizer)], f"0>{tmp_path / 'file'}")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, "Error: stdin cannot be read: Bad file descriptor.")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device without room")
@pytest.mark.parametrize("unbuffered", ["", "1"])  # containers set it; without it the text is still there at the end
@pytest.mark.parametrize("words", [["--help"], ["--version"], ["run", "--help"]])
def test_no_room_for_what_no_command_writes(words: list[str], unbuffered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    done = redirected(words, ">/dev/full")
    assert (done.returncode, done.stderr) == (2, "Error: Writing the output failed: No space left on device.\n")


def test_arguments_that_are_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONUTF8", "1")
    done = redirected(["export", "demo", "-o"], "$'d\\xffx'")
    said = "Error: The argument d\\xffx is no text in this locale's encoding, utf-8. Write it in UTF-8; "
    assert done.returncode == 2 and done.stderr.startswith(said) and len(done.stderr.splitlines()) == 1


def test_what_is_left_in_a_directory_of_any_name_is_cleaned(tmp_path: Path) -> None:
    place = os.fsencode(tmp_path) + b"/caf\xe9"
    left = place + b"/.x.abcdefgh.lucid.partial"
    os.makedirs(left)
    done = subprocess.run([*COMMAND, "clean", place], capture_output=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0 and not os.path.exists(left), done.stderr


def test_a_locale_without_the_argument_s_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([*COMMAND, "run", "dé"], capture_output=True, check=False, timeout=PATIENCE)
    assert done.returncode == 2 and b"encoding, ascii. Set the environment variable PYTHONUTF8=1" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_working_directory_is_gone(tmp_path: Path) -> None:
    line = 'cd "$0" && rmdir "$0" && exec "$@"'
    words = ["bash", "-c", line, str(tmp_path / "here"), *COMMAND, "export", "demo", "-o", "x"]
    (tmp_path / "here").mkdir()
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 2
    assert done.stderr == "Error: The working directory does not exist any more. Change to another one.\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device without room")
@pytest.mark.parametrize("how", ["2>/dev/full", ">/dev/full 2>/dev/full"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_no_failed_check_where_nothing_can_be_said(
    how: str, unbuffered: str, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a log of both on a full disk; status 1 would say that the artifact is wrong."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    assert redirected(["run", str(exported()[1].directory), "--prompt-ids", "5", "-n", "2"], how).returncode == 2


def test_no_folder_for_temporary_files_is_one_line(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a container's file systems are all read-only."""

    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    result = CliRunner().invoke(main, ["bench", str(exported()[1].directory), "--lengths", "8"])
    assert (result.exit_code, result.stderr) == (
        2,
        "Error: No usable temporary directory found in ['/tmp']. Set TMPDIR to a folder that can be written.\n",
    )
