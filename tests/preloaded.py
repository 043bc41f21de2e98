"""Processes that begin with PyTorch imported: a server imports the large packages once and forks for each program.

Half of what a short program costs is importing them. A folder for ``PATH`` holds ``python`` and ``lucid-deploy``, which
hand their arguments, folder, environment and open files to the server. Of our own package nothing is imported before
the program does. A program's parent is another process: use it where nobody sends signals.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

LARGE = ("torch", "torch.onnx", "torch.export", "onnxscript", "onnx", "onnxruntime", "tokenizers", "safetensors.torch")
PROGRAMS = {"python": [], "lucid-deploy": ["-m", "lucid_deploy.cli"]}
CLIENT = """#!{python} -IS
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
said = json.dumps([{before!r} + sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(said).to_bytes(8, "little")], [0, 1, 2])
server.sendall(said)
status = server.recv(4)
sys.exit(int.from_bytes(status, "little") if status else 70)
"""


def serve(address: str, packages: tuple[str, ...] = LARGE) -> None:
    """Import the packages, then run programs until standard input is closed, as it is when its holder is killed."""
    for name in packages:
        importlib.import_module(name)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while 0 not in select.select([listening, 0], [], [])[0]:
        asking, _ = listening.accept()
        if (child := os.fork()) == 0:
            listening.close()
            if os.fork() == 0:  # its grandchild, which nobody but init has to wait for
                _answer(asking)
            os._exit(0)
        os.waitpid(child, 0)
        asking.close()
    os.unlink(address)


def start_server(address: str, packages: tuple[str, ...] = LARGE) -> subprocess.Popen[str]:
    """Start a server, and wait until it is ready; it ends when its standard input is closed, so with this process."""
    server = subprocess.Popen(
        [sys.executable, "-c", f"from tests.preloaded import serve; serve({address!r}, {packages!r})"],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None and server.stdout.readline() == "ready\n"
    return server


def _answer(asking: socket.socket) -> None:
    """Run what a client asks for in a process of its own, and tell its exit status."""
    size, files, _, _ = socket.recv_fds(asking, 8, 3)
    said = b""
    while len(said) < int.from_bytes(size, "little"):
        said += asking.recv(1 << 16)
    arguments, folder, environment = json.loads(said)
    if (child := os.fork()) == 0:
        asking.close()
        _become(arguments, folder, environment, files)
    for file in files:
        os.close(file)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    asking.sendall((status if status >= 0 else 128 - status).to_bytes(4, "little"))
    os._exit(0)


def _become(arguments: list[str], folder: str, environment: dict[str, str], files: list[int]) -> None:
    """Be the Python program that the arguments name, as ``python`` takes them: a file, ``-c`` or ``-m``."""
    for place, file in enumerate(files):
        os.dup2(file, place)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    status = 1
    try:
        status = _status(_run, arguments)
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _run(arguments: list[str]) -> None:
    kind, *rest = arguments
    if kind in ("-c", "-m"):
        sys.argv, sys.path[0] = [kind if kind == "-c" else rest[0], *rest[1:]], ""
        if kind == "-m":
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = arguments, str(Path(kind).resolve().parent)
        runpy.run_path(kind, run_name="__main__")


def _status(function: Any, *arguments: Any) -> int:
    """Call a function; return the exit status that the interpreter would end with."""
    try:
        function(*arguments)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException:  # noqa: BLE001 - as the interpreter shows it
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        return 1
    return 0


@pytest.fixture(scope="session")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with ``python`` and ``lucid-deploy`` that start without importing PyTorch."""
    folder = tmp_path_factory.mktemp("preloaded")
    address = str(Path(os.environ["TMPDIR"]) / f"fork{os.getpid()}")  # short, as sockets ask for
    for name, before in PROGRAMS.items():
        program = folder / name
        program.write_text(CLIENT.format(python=sys.executable, address=address, before=before))
        program.chmod(0o755)
    server = start_server(address)
    yield folder
    assert server.stdin is not None and server.stdout is not None
    server.stdin.close()
    server.wait()
    server.stdout.close()
