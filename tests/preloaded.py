"""Processes that begin with PyTorch imported: a server imports the large packages once and forks for each program.

Half of what a short program costs is importing them. A folder for ``PATH`` holds ``python`` and ``lucid-deploy``, which
hand their arguments, folder, environment and open files to the server. Only the program imports our own package. The
process that a test starts is a client of the server, and not the program: it passes on signals that end programs, the
program is killed if the client dies, and the client ends with the program's status. All workers share one server.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
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

from tests.once_per_run import run_folder

LARGE = ("torch", "torch.onnx", "torch.export", "onnxscript", "onnx", "onnxruntime", "tokenizers", "safetensors.torch")
# An export's first trace imports these, and Triton, which is left out: it reads its environment when imported.
LARGE += ("networkx", "torch.distributed.tensor", "torch._numpy", "onnxscript.function_libs.torch_lib.ops")
PROGRAMS = {"python": [], "lucid-deploy": ["-m", "lucid_deploy.cli"]}
HANDED_ON = ("SIGHUP", "SIGINT", "SIGTERM")
CLIENT = """#!{python} -IS
import json, os, select, signal, socket, sys
early = [signal.Signals[name] for name in {handed_on}]
signal.pthread_sigmask(signal.SIG_BLOCK, early)  # until the program's process id is known
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
said = json.dumps([{before!r} + sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(said).to_bytes(8, "little")], [0, 1, 2])
server.sendall(said)
program = int.from_bytes(server.recv(4), "little")
for name in early:
    signal.signal(name, lambda number, _: os.kill(program, number))
woken, waker = socket.socketpair()  # a signal just before a blocking call would wait for the call's end
waker.setblocking(False)
signal.set_wakeup_fd(waker.fileno())
signal.pthread_sigmask(signal.SIG_UNBLOCK, early)
while server not in select.select([server, woken], [], [])[0]:
    woken.recv(64)  # a handler has run
answer = server.recv(4)
status = int.from_bytes(answer, "little", signed=True) if answer else 70
if status < 0:
    signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


def serve(address: str) -> None:
    """Import the packages, then run programs until standard input is closed, as it is when its holder is killed."""
    for name in LARGE:
        importlib.import_module(name)
    gc.freeze()  # programs need not look through all that for garbage
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while 0 not in select.select([listening, 0], [], [])[0]:
        asking, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # else a program that outlives the server would pass for it
            _answer(asking)
        asking.close()
        _wait_for_those_that_ended()
    os.unlink(address)


def _wait_for_those_that_ended() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def start_server(address: str, holder: int) -> subprocess.Popen[str]:
    """Start a server, and wait until it is ready; it ends when its standard input is closed, so with this process."""
    server = subprocess.Popen(
        [sys.executable, "-c", f"from tests.preloaded import serve; serve({address!r})"],
        cwd=Path(__file__).parents[1],
        stdin=holder,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None and server.stdout.readline() == "ready\n"
    return server


def _answer(asking: socket.socket) -> None:
    """Run the program that a client asks for in a new process, and send its exit status."""
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
    with contextlib.suppress(OSError):  # the client may be gone already: the program has begun, and is killed below
        asking.sendall(child.to_bytes(4, "little"))
    ended = os.pidfd_open(child)
    if ended not in select.select([ended, asking], [], [])[0]:  # the client is gone
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):
        asking.sendall(status.to_bytes(4, "little", signed=True))
    os._exit(0)


def _become(arguments: list[str], folder: str, environment: dict[str, str], files: list[int]) -> None:
    """Become the Python program that the arguments name, as ``python`` takes them: a file, ``-c`` or ``-m``."""
    for place, file in enumerate(files):
        os.dup2(file, place)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for name in HANDED_ON:
        number = signal.Signals[name]
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    status = 1
    try:
        status = _status(_run, arguments)
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        if status < 0:
            signal.signal(-status, signal.SIG_DFL)
            os.kill(os.getpid(), -status)
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
    """Call a function; return the exit status that the interpreter would end with, negative for a signal."""
    try:
        function(*arguments)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException as error:  # noqa: BLE001 - as the interpreter shows it
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


@contextlib.contextmanager
def shared_server(folder: Path) -> Iterator[None]:
    """Use the server of a folder: start it if no other process uses it; it ends when its last user does."""
    holders = folder / "holders"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not holders.exists():
            os.mkfifo(holders)
        server = None
        try:
            held = os.open(holders, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nobody reads it: no server
                raise
            reading = os.open(holders, os.O_RDONLY | os.O_NONBLOCK)
            held = os.open(holders, os.O_WRONLY)
            address = str(Path(os.environ["TMPDIR"]) / f"fork{folder.stat().st_ino}")  # short, as sockets ask for
            server = start_server(address, reading)
            os.close(reading)
            _write_programs(folder, address)
    yield
    os.close(held)
    if server is not None:
        assert server.stdout is not None
        server.wait()  # until the last of the other workers closes it too
        server.stdout.close()


def _write_programs(folder: Path, address: str) -> None:
    for name, before in PROGRAMS.items():
        program = folder / name
        program.write_text(CLIENT.format(python=sys.executable, address=address, before=before, handed_on=HANDED_ON))
        program.chmod(0o755)


@pytest.fixture(scope="session")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with ``python`` and ``lucid-deploy`` that start without importing PyTorch, for all workers."""
    folder = run_folder(tmp_path_factory, "preloaded")
    with shared_server(folder):
        yield folder
