"""Terminals of older encodings and closed streams: text that can be read, or one line, and never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lucid_deploy.artifact import Artifact
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
