"""Too little memory is one line, whichever library says it, and an export leaves nothing behind."""

from __future__ import annotations

import builtins
import errno
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from google.protobuf.message import EncodeError

from lucid_deploy.cli import main
from lucid_deploy.errors import CheckFailed
from lucid_deploy.shortages import TooLittleMemory, lacks_memory, memory_errors_told
from tests.patience import PATIENCE

SAID = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 40000000000"),
    RuntimeError(
        "Exception from src/plugins/intel_cpu/src/node.cpp:823: [CPU] Abs node with name 'Abs_246749' can't alloc"
    ),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    RuntimeError("std::bad_alloc"),
]


@pytest.mark.parametrize("error", SAID, ids=repr)
def test_it_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("wrapped") from error

    monkeypatch.setattr("lucid_deploy.export.export", fail)
    for raised in (lambda *_: (_ for _ in ()).throw(error), fail):
        monkeypatch.setattr("lucid_deploy.export.export", raised)
        result = CliRunner().invoke(main, ["export", "demo", "-o", str(tmp_path / "artifact")])
        assert result.exit_code == 2 and result.stderr.startswith("Error: There is too little memory for this")
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("can't start new thread"),
        BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)),  # of a fork
        CheckFailed("onnxruntime cannot load prefill.onnx: pthread_create failed, error code: 11"),
    ],
    ids=repr,
)
def test_a_limit_on_threads_and_processes_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lucid_deploy.export.export", lambda *_: (_ for _ in ()).throw(error))
    result = CliRunner().invoke(main, ["export", "demo", "-o", "artifact"])
    assert result.exit_code == 2 and result.stderr.startswith("Error: No more threads or processes may be started")
    assert len(result.stderr.splitlines()) == 1


def test_an_artifact_that_finds_no_memory_failed_no_check(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = CheckFailed("onnxruntime cannot load prefill.onnx: std::bad_alloc")
    monkeypatch.setattr("lucid_deploy.export.export", lambda *_: (_ for _ in ()).throw(failed))
    result = CliRunner().invoke(main, ["export", "demo", "-o", "artifact"])
    assert result.exit_code == 2 and result.stderr.startswith("Error: There is too little memory for this")


@pytest.mark.parametrize("error", [ValueError("shape"), OSError(errno.ENOSPC, "No space left on device"), None])
def test_other_errors_are_no_lack_of_memory(error: Exception | None) -> None:
    assert not lacks_memory(error)


@pytest.mark.parametrize(
    "error", [SystemError("error return without exception set"), EncodeError("Failed to serialize")]
)
def test_errors_without_a_reason_are_it_near_a_limit(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not lacks_memory(error), "there is no limit"
    for limit, lacks in ((1 << 20, True), (1 << 50, False)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert lacks_memory(error) == lacks and not lacks_memory(ValueError("shape"))


@pytest.mark.parametrize(
    ("refusal", "lacks"), [(ImportError("failed to map segment"), True), (ModuleNotFoundError("resource"), False)]
)
def test_a_module_without_room_says_it_too(refusal: ImportError, lacks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen: an export whose memory ended could not load the module that tells limits."""
    there = builtins.__import__

    def load(name: str, *rest: Any) -> Any:
        if name == "resource":
            raise refusal
        return there(name, *rest)

    monkeypatch.setattr(builtins, "__import__", load)
    assert lacks_memory(SystemError("error return without exception set")) == lacks


def test_what_finds_no_memory_while_the_process_ends_is_no_traceback() -> None:
    """Seen: behind the one line PyTorch's callback at exit imported a module, for a log that nobody asked for."""
    program = (
        "import atexit\n"
        "from lucid_deploy.cli import main\n"
        "def late(error):\n    raise error\n"
        "atexit.register(late, MemoryError())\n"
        "atexit.register(late, ValueError('another'))\n"
        "main(['--version'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    assert "MemoryError" not in done.stderr and "ValueError: another" in done.stderr and done.returncode == 0


def test_a_limit_on_an_export(tmp_path: Path) -> None:
    """So low that PyTorch cannot be loaded, and so high that the model cannot be traced: one line, and nothing left."""
    for limit in (500_000, 1_000_000):  # at others libraries in C++ may crash, or fail where nobody can catch it
        line = f"ulimit -v {limit}; exec {sys.executable} -m lucid_deploy.cli export demo -o {tmp_path / 'artifact'}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, timeout=PATIENCE)
        if done.returncode == 0:  # this machine's libraries are small
            break
        assert "Traceback" not in done.stderr, done.stderr
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", SAID, ids=repr)
def test_whatever_says_it_becomes_one_error(error: Exception) -> None:
    with pytest.raises(TooLittleMemory) as raised, memory_errors_told():
        raise error
    assert raised.value.__cause__ is error and str(raised.value).startswith("There is too little memory for this")
    with pytest.raises(ValueError, match="shape"), memory_errors_told():
        raise ValueError("shape")
