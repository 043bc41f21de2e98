"""The process of a command: closed or full streams, arguments that are not text, signals, threads of libraries."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.artifact import Artifact
from tests.patience import PATIENCE

Exported = Callable[..., tuple[Path, Artifact]]
COMMAND = [sys.executable, "-m", "lucid_deploy.cli"]


def shell(line: str, *words: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash, in which ``"$@"`` is the program with these words."""
    return subprocess.run(
        ["bash", "-c", line, "bash", *COMMAND, *map(str, words)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def test_a_closed_stdout_is_one_line(exported: Exported) -> None:
    done = shell('"$@" >&-', "inspect", exported()[1].directory)
    assert done.returncode == 2 and done.stderr.startswith("Error: stdout is closed")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", [["--help"], ["run", "{}", "--prompt-ids", "5", "--json", "-n", "2"]])
def test_a_reader_that_has_gone_ends_the_command_as_sigpipe_would(words: list[str], exported: Exported) -> None:
    words = [word.format(exported()[1].directory) for word in words]
    done = shell('{ sleep 0.1; "$@"; echo "status $?" >&2; } | true', *words)
    assert "status 141" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["--help"], ["inspect", "{}"]])
def test_a_full_disk_is_one_line(words: list[str], exported: Exported) -> None:
    done = shell('"$@" >/dev/full', *(word.format(exported()[1].directory) for word in words))
    assert (done.returncode, done.stderr) == (2, "Error: Writing the output failed: No space left on device.\n")


def test_characters_that_the_terminal_lacks_are_escaped(exported: Exported) -> None:
    done = shell('"$@"', "inspect", exported()[1].directory, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "") and "past_key_values" in done.stdout


def test_an_argument_that_is_not_text_is_one_line() -> None:
    done = shell("\"$@\" $'d\\xffx'", "export", "demo", "-o", PYTHONUTF8="1")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("Error: The argument d\\xffx is not text in this locale's encoding;")


# Writes a marker, sleeps, and removes the marker again however it ends.
CLEAN_UP = """
import pathlib, sys, time
from lucid_deploy.cli import main
import click
@main.command("long")
def long():
    marker = pathlib.Path(sys.argv[-1])
    try:
        marker.write_text("")
        time.sleep(60)
    finally:
        marker.unlink()
main.get_command = lambda context, name: long
main(["long"])
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_lets_the_command_clean_up(number: signal.Signals, status: int, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    process = subprocess.Popen([sys.executable, "-c", CLEAN_UP, marker], stderr=subprocess.PIPE, text=True)
    while not marker.exists():
        time.sleep(0.02)
    process.send_signal(number)
    said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == status and not marker.exists()
    assert said == ("Interrupted.\n" if number == signal.SIGINT else "")


NAMES = ("OMP_WAIT_POLICY", "OPENBLAS_THREAD_TIMEOUT")
CALL = "from lucid_deploy.cli._process import let_waiting_threads_sleep as call; call()"
VERIFY = """
from lucid_deploy.cli import main
try:
    main(["verify", "no-such-artifact"])
except SystemExit as left:
    assert left.code == 2
assert "numpy" in sys.modules
"""


def shown(code: str, given: dict[str, str], *names: str) -> str:
    """Run code in a process whose environment has, of ``names``, only those ``given``; return their values after it."""
    kept = {name: value for name, value in os.environ.items() if name not in names}
    show = f"print(*(os.environ.get(name) for name in {names}))"
    found = subprocess.run(
        [sys.executable, "-c", f"import os, sys\n{code}\n{show}"],
        env={**kept, **given},
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("code", "given", "wanted"),
    [
        (CALL, {}, "PASSIVE 4"),
        (CALL, {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE 4"),
        ("import numpy; " + CALL, {}, "None None"),
        (VERIFY, {}, "PASSIVE 4"),
    ],
    ids=["fresh", "chosen", "loaded", "verify"],
)
def test_idle_threads_are_set_up_before_libraries_are_loaded(code: str, given: dict[str, str], wanted: str) -> None:
    assert shown(code, given, *NAMES) == wanted


COUNT = "from lucid_deploy import processors; processors.allowed_threads = lambda: {threads}\n"
COUNT += "from lucid_deploy.cli import main\n"
HELP = """
try:
    main(["--version"])
except SystemExit:
    pass
"""


@pytest.mark.parametrize(
    ("code", "given", "wanted"),
    [
        (COUNT.format(threads=3) + HELP, {}, "3"),
        (COUNT.format(threads=None) + HELP, {}, "None"),
        (COUNT.format(threads=3) + HELP, {"OMP_NUM_THREADS": "2"}, "2"),
        (COUNT.format(threads=3) + "import numpy\n" + HELP, {}, "None"),
    ],
    ids=["fewer", "all", "chosen", "loaded"],
)
def test_threads_are_limited_to_those_this_process_may_use(code: str, given: dict[str, str], wanted: str) -> None:
    assert shown(code, given, "OMP_NUM_THREADS") == wanted
