"""The installed programs while they are being read: Ctrl-C is no fault there."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.patience import PATIENCE

ROOT = Path(__file__).parents[1]
PROGRAMS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
# As the installed script does, but for Ctrl-C where one module is about to be read.
INTERRUPTED = """
import os, signal, sys
handling, at = sys.argv.pop(1), sys.argv.pop(1)
signal.signal(signal.SIGINT, signal.SIG_IGN if handling == "ignored" else signal.default_int_handler)
class Finder:
    def find_spec(self, name, *_):
        if name == at:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                sum(range(1000))  # Python handles a signal between two instructions
            except KeyboardInterrupt as error:
                raise ImportError("replaced, as where C code imports") from error
sys.meta_path.insert(0, Finder())
from {module} import {function}
sys.exit({function}())
"""


def interrupted(program: str, handling: str, at: str, *arguments: str) -> tuple[int, str]:
    module, function = PROGRAMS[program].split(":")
    code = INTERRUPTED.replace("{module}", module).replace("{function}", function)
    command = [sys.executable, "-c", code, handling, at, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT)
    return done.returncode, done.stderr


@pytest.mark.parametrize("at", ["click", "lucid_deploy.cli._streams", "lucid_deploy.cli.doctor"])
def test_an_interrupt_while_a_program_is_read_is_one_line(at: str) -> None:
    assert interrupted("lucid-deploy", "by nobody", at, "doctor", "--help") == (130, "Interrupted.\n")


def test_every_program_does_so() -> None:
    for program in PROGRAMS:
        assert interrupted(program, "by nobody", "click", "--help") == (130, "Interrupted.\n")


def test_an_interrupt_that_is_ignored_stays_so() -> None:
    assert interrupted("lucid-deploy", "ignored", "click", "--version") == (0, "")


def test_what_is_read_before_is_next_to_nothing() -> None:
    """Ctrl-C shows a traceback until then."""
    code = "import sys, re; known = {*sys.modules}; import lucid_deploy.start; print(*sorted({*sys.modules} - known))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True)
    read = [name for name in done.stdout.split() if name.startswith("lucid_deploy")]
    assert read == ["lucid_deploy", *(f"lucid_deploy.{name}" for name in ("errors", "interrupts", "start", "version"))]
