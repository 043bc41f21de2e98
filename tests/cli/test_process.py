"""Closed or full streams, arguments that are not text, and signals: one line and the right status, no traceback."""

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
    assert done.stderr.startswith("Error: The argument d\\xffx is not text in this locale's encoding, utf-8.")


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
