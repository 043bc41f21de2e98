"""Fixtures that check what a refusal looks like."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from lucid_deploy.cli import main
from tests.patience import PATIENCE

Refused = Callable[..., str]


def snapshot(directory: Path) -> dict[str, str]:
    """Everything below a directory, hidden files included, and a digest of each file."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in directory.rglob("*")
    }


def one_message(stdout: str, stderr: str) -> str:
    assert stdout == ""
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("Error: ")
    return lines[0]


def in_this_process(arguments: list[str], stdin: bytes | None) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, arguments, input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def in_its_own_process(arguments: list[str], stdin: bytes | None) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "lucid_deploy.cli", *arguments]
    result = subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=PATIENCE)
    return result.returncode, result.stdout.decode(), result.stderr.decode()


@pytest.fixture
def refused(tmp_path: Path) -> Refused:
    """Run a command that must be refused: exit status, one message, nothing on stdout, no file changed or left.

    ``refused(*arguments, exit_code=2, stdin=None, process=False)`` returns the message; ``process`` runs the command
    line in a process of its own.
    """

    def run(*arguments: Any, exit_code: int = 2, stdin: bytes | None = None, process: bool = False) -> str:
        before = snapshot(tmp_path)
        execute = in_its_own_process if process else in_this_process
        code, stdout, stderr = execute([str(item) for item in arguments], stdin)
        message = one_message(stdout, stderr)
        assert code == exit_code, message
        assert snapshot(tmp_path) == before
        return message

    return run


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave tracing out, which takes seconds, for exports that fail while they write weights."""
    traced = SimpleNamespace(transposed=frozenset())
    monkeypatch.setattr("lucid_deploy.export.trace.trace", lambda *_, **__: traced)
    monkeypatch.setattr("lucid_deploy.export.trace.derive_static", lambda *_: None)
