"""Programs that begin with PyTorch imported: the same arguments, files, folder, environment and exit status."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from lucid_deploy.version import __version__
from tests import preloaded as preloading
from tests.patience import PATIENCE

pytestmark = pytest.mark.slow
SAYS = """
import os, sys
print(__name__, sys.argv, os.getcwd(), os.environ["SAID"], sys.stdin.read())
print("torch" in sys.modules, [name for name in sys.modules if name.startswith("lucid_deploy")], file=sys.stderr)
import beside
"""


def run(folder: Path, shell: str, cwd: Path, **more: str) -> tuple[int, str, str]:
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **more}
    command = ["bash", "-o", "pipefail", "-c", shell]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout, result.stderr


def test_a_program_in_a_file(preloaded: Path, tmp_path: Path) -> None:
    (tmp_path / "says.py").write_text(SAYS)
    (tmp_path / "beside.py").write_text("")
    found = run(preloaded, "echo given | python says.py 'a b' c | cat", tmp_path, SAID="so")
    assert found == (0, f"__main__ ['says.py', 'a b', 'c'] {tmp_path} so given\n\n", "True []\n")


ENDS = {
    "import sys; sys.exit(3)": (3, ""),
    "import sys; sys.exit('the reason')": (1, "the reason"),
    "raise ValueError('the reason')": (1, "ValueError: the reason"),
    "import os; os.kill(os.getpid(), 9)": (-9, ""),
    "pass": (0, ""),
}


@pytest.mark.parametrize("code", ENDS)
def test_its_exit_status(code: str, preloaded: Path, tmp_path: Path) -> None:
    status, out, error = run(preloaded, f'python -c "{code}"', tmp_path)
    assert (status, out) == (ENDS[code][0], "") and ENDS[code][1] in error and bool(error) == bool(ENDS[code][1])


def test_what_reads_its_environment_when_imported_is_not_imported_yet(preloaded: Path, tmp_path: Path) -> None:
    code = "import sys; print([name in sys.modules for name in ('torch', 'torch._numpy', 'triton')])"
    assert run(preloaded, f'python -c "{code}"', tmp_path) == (0, "[True, True, False]\n", "")


def test_the_command(preloaded: Path, tmp_path: Path) -> None:
    assert run(preloaded, "lucid-deploy --version", tmp_path) == (0, f"lucid-deploy, version {__version__}\n", "")
    status, _, error = run(preloaded, "lucid-deploy inspect nowhere", tmp_path)
    assert status == 2 and "nowhere" in error and "Traceback" not in error


WAITS = """
import signal, sys, time
if sys.argv[1]:
    signal.signal(signal.Signals[sys.argv[1]], lambda number, _: sys.exit(number + 100))
print("ready", flush=True)
for _ in range(10 * int({patience})):  # a signal just before a sleep is seen after it
    time.sleep(0.1)
"""


@pytest.mark.parametrize("sent", ["SIGHUP", "SIGINT", "SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("caught", [True, False])
def test_signals_are_handed_on(sent: str, caught: bool, preloaded: Path) -> None:
    """To a program that handles them, and to one that they end; what nobody can hand on ends both."""
    number, handled = signal.Signals[sent], sent if caught and sent != "SIGKILL" else ""
    pipe = subprocess.PIPE
    command = [preloaded / "python", "-c", WAITS.format(patience=PATIENCE), handled]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        said, error = process.communicate(timeout=PATIENCE)  # its end closes them
    if handled:
        assert (process.returncode, said, error) == (number + 100, "", "")
    else:
        assert (process.returncode, said) == (-number, "")
        assert error.endswith("KeyboardInterrupt\n") if sent == "SIGINT" else error == ""


KILLED = """
import os, signal, sys
from tests.preloaded import start_server
print(start_server(sys.argv[1], ("json",)).pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_server_ends_with_its_holder(tmp_path: Path) -> None:
    """Killed, so that nothing of its own code runs any more."""
    address = str(Path(os.environ["TMPDIR"]) / f"end{os.getpid()}")
    command = [sys.executable, "-c", KILLED, address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as holder:
        assert holder.stdout is not None
        pid = int(holder.stdout.readline())
    assert holder.returncode == -signal.SIGKILL
    with suppress(ProcessLookupError):  # it has ended already
        process = os.pidfd_open(pid)
        ended = select.select([process], [], [], PATIENCE)[0]
        os.close(process)
        if not ended:
            os.kill(pid, signal.SIGKILL)
        assert ended
    assert not os.path.exists(address)


def test_all_workers_have_one_server_until_the_last_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, started, answers = preloading.start_server, [], []
    monkeypatch.setattr(preloading, "start_server", lambda *a, **b: started.append(start(*a, **b)) or started[-1])
    folder = tmp_path / "shared"
    folder.mkdir()

    def hold_longer(held: int) -> None:
        answers.append(run(folder, 'python -c "print(1)"', tmp_path))
        os.close(held)

    with preloading.shared_server(folder, ("json",)):
        with preloading.shared_server(folder, ("json",)):
            pass
        assert run(folder, 'python -c "print(1)"', tmp_path) == (0, "1\n", "")
        thread = threading.Thread(target=hold_longer, args=(os.open(folder / "holders", os.O_WRONLY),))
        thread.start()
    assert len(started) == 1 and started[0].returncode == 0
    thread.join()
    assert answers == [(0, "1\n", "")]
    with preloading.shared_server(folder, ("json",)):  # nobody held it
        assert run(folder, 'python -c "print(1)"', tmp_path) == (0, "1\n", "")
    assert len(started) == 2


def test_several_at_the_same_time(preloaded: Path, tmp_path: Path) -> None:
    line = "python -c 'print(1); print(2)' | python -c 'import sys; print(sys.stdin.read().split())'"
    assert run(preloaded, line, tmp_path) == (0, "['1', '2']\n", "")
