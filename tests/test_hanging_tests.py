"""A test that never returns fails, and where C code looks at no signal the process ends: no run waits for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from tests import last_guard
from tests.patience import PATIENCE

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}  # of the outer run
FIRST = """
import ctypes, time
import pytest

def hang_in_python():
    while True:
        time.sleep(0.01)

def hang_in_c():  # a deadlock: no look at signals, no other Python code meanwhile, and no processor time
    library, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(256)
    library.pthread_mutex_init(mutex, None)
    while True:
        library.pthread_mutex_lock(mutex)

@pytest.fixture
def slow_start():
    {hang}()

@pytest.fixture
def slow_end():
    yield
    {hang}()
"""
TESTS = {
    "test_call": "def test_call():\n    {hang}()\n",
    "test_set_up": "def test_set_up(slow_start):\n    pass\n",
    "test_clean_up": "def test_clean_up(slow_end):\n    assert False\n",
    "test_last_clean_up": "def test_last_clean_up(slow_end):\n    pass\n",
    "test_good": "def test_good():\n    pass\n",
}


def run(folder: Path, hang: str, *tests: str, workers: int = 0) -> str:
    """Run tests of a file with the project's options and short limits; return what a red run says."""
    source = "\n".join([FIRST, *(TESTS[name] for name in tests)])
    (folder / "test_it.py").write_text(source.replace("{hang}", hang))
    return run_files(folder, workers, folder / "test_it.py")


def run_files(folder: Path, workers: int, *files: Path, limit: int = 3) -> str:
    """Run files so; return what a red run says. Each test has ``limit`` seconds."""
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder)]
    command += ["-p", "no:cacheprovider", "-p", "tests.last_guard"]
    command += ["-o", f"timeout={limit}", "-o", f"faulthandler_timeout={limit + 2}"]
    command += ["-n", str(workers), "--dist", "loadfile", *map(str, files)]
    result = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=600
    )
    assert result.returncode == 1, result.stdout + result.stderr
    return result.stdout + result.stderr


CLEAN_UPS = ["test_clean_up", "test_last_clean_up"]
HANGS = {
    "python": ("hang_in_python", 0, ["test_call", "test_set_up", "test_good"]),
    "python in a worker": ("hang_in_python", 1, ["test_call", "test_set_up", "test_good"]),
    **{f"c in {test}": ("hang_in_c", 0, [test, "test_good"]) for test in ("test_call", "test_set_up", *CLEAN_UPS)},
    "c in a worker": ("hang_in_c", 1, ["test_call", "test_set_up", "test_good"]),
    **{f"c behind all in {test}": ("hang_in_c", 1, ["test_good", test]) for test in CLEAN_UPS},
}


@pytest.fixture(scope="module")
def hung(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[str]]]:
    """What these say, at the same time: nearly all of it is waiting for a limit."""
    with ThreadPoolExecutor(len(HANGS)) as pool:
        yield {
            name: pool.submit(run, tmp_path_factory.mktemp("hang"), hang, *tests, workers=workers)
            for name, (hang, workers, tests) in HANGS.items()
        }


@pytest.mark.parametrize("name", ["python", "python in a worker"])
def test_python_code_that_hangs_fails_and_the_next_test_runs(hung: dict[str, Future[str]], name: str) -> None:
    told = hung[name].result()
    assert "Timeout (>3.0s)" in told and "1 passed" in told


@pytest.mark.parametrize("test", ["test_call", "test_set_up", *CLEAN_UPS])
def test_c_code_that_hangs_ends_the_process(hung: dict[str, Future[str]], test: str) -> None:
    told = hung[f"c in {test}"].result()
    assert "Timeout (0:00:05)!" in told and "in hang_in_c" in told and "passed in" not in told


def test_a_worker_that_ends_is_a_failure_and_the_rest_runs(hung: dict[str, Future[str]]) -> None:
    told = hung["c in a worker"].result()
    told, _, summary = told.partition("short test summary info")  # which says it again, where the line is wide enough
    for crashed in ("test_call", "test_set_up"):
        assert told.count(f"crashed while running 'test_it.py::{crashed}'") == 1
    assert "2 failed, 1 passed" in summary


def test_files_that_are_done_do_not_keep_the_rest_from_running(tmp_path: Path) -> None:
    """A worker ends after whole files; the other one, and the one in its place, must not wait for those."""
    for number in range(6):
        good = "".join(f"def test_good{index}(): pass\n" for index in range(3))
        crash = "def test_crash():\n    import os\n    os._exit(1)\n" if number == 3 else ""
        (tmp_path / f"test_{number}.py").write_text(good + crash + "def test_last(): pass\n")
    told = run_files(tmp_path, 2, *sorted(tmp_path.glob("test_*.py")), limit=round(PATIENCE))
    assert "1 failed, 24 passed" in told and told.count("crashed while running 'test_3.py::test_crash'") >= 1


@pytest.mark.parametrize("test", CLEAN_UPS)
def test_a_worker_that_ends_behind_its_last_test_is_a_failure(hung: dict[str, Future[str]], test: str) -> None:
    told = hung[f"c behind all in {test}"].result()
    assert "worker gw0: Not properly terminated" in told and "in hang_in_c" in told


class Worker:
    """What the scheduler knows of a worker."""

    def __init__(self, name: str) -> None:
        self.gateway = SimpleNamespace(id=name)
        self.sent: list[int] = []
        self.shutting_down = False

    def send_runtest_some(self, numbers: list[int]) -> None:
        self.sent += numbers

    def shutdown(self) -> None:
        self.shutting_down = True


def scheduler_of(workers: list[Worker], tests: list[str]) -> LoadFileScheduling:
    """Return the scheduler after its first distribution."""
    options = SimpleNamespace(loadscopereorder=False)
    config = SimpleNamespace(getvalue=lambda name: ["popen"] * 2, getoption=lambda name: "loadfile", option=options)
    scheduler = last_guard.pytest_xdist_make_scheduler(config, Producer("scheduler", enabled=False))
    assert scheduler is not None
    for worker in workers:
        scheduler.add_node(worker)
        scheduler.add_node_collection(worker, tests)
    scheduler.schedule()
    return scheduler


def add(scheduler: LoadFileScheduling, worker: Worker, tests: list[str]) -> None:
    scheduler.add_node(worker)
    scheduler.add_node_collection(worker, tests)
    scheduler.schedule()


def test_the_last_test_of_all_is_run_by_a_worker_in_place_of_another() -> None:
    """It keeps a test until it hears of a next one, or that there is none."""
    tests = ["a.py::first", "a.py::crash", "a.py::last", "b.py::only"]
    first, other, another = Worker("gw0"), Worker("gw1"), Worker("gw2")
    scheduler = scheduler_of([first, other], tests)
    assert (first.sent, other.sent) == ([0, 1, 2], [3])
    scheduler.mark_test_complete(first, 0)
    scheduler.mark_test_complete(other, 3)
    assert scheduler.remove_node(other) is None and scheduler.remove_node(first) == "a.py::crash"
    add(scheduler, another, tests)
    assert another.sent == [2] and another.shutting_down


def test_a_worker_in_place_of_another_does_not_begin_with_a_single_test() -> None:
    """It would keep it, and the other worker would take the rest and end, without a word to it."""
    names = ("crash", "last", "more")
    tests = [f"{file}.py::{name}" for file in "abcdef" for name in (names if file in "ab" else names[:1])]
    first, other, another = Worker("gw0"), Worker("gw1"), Worker("gw2")
    scheduler = scheduler_of([first, other], tests)
    assert (first.sent, other.sent) == ([0, 1, 2], [3, 4, 5])
    assert scheduler.remove_node(first) == "a.py::crash"
    add(scheduler, another, tests)
    assert len(another.sent) >= 2 and not another.shutting_down
    for worker in (another, other):  # as they run: a test when the next one, or the end, is known
        while len(worker.sent) > 1 or (worker.sent and worker.shutting_down):
            scheduler.mark_test_complete(worker, worker.sent.pop(0))
    assert another.shutting_down and other.shutting_down and not another.sent and not other.sent


def test_a_worker_that_still_collects_gets_nothing_yet() -> None:
    tests = ["a.py::first", "b.py::first", "c.py::first", "c.py::more", "d.py::first"]
    first, other, another = Worker("gw0"), Worker("gw1"), Worker("gw2")
    scheduler = scheduler_of([first, other], tests)
    scheduler.add_node(another)
    scheduler.remove_node(first)
    assert another.sent == [] and not another.shutting_down


def test_the_limits_are_in_this_order(request: pytest.FixtureRequest) -> None:
    """The process ends only where the test could not be failed."""
    limit, last = (float(request.config.getini(name)) for name in ("timeout", "faulthandler_timeout"))
    assert 0 < limit < last and request.config.getini("faulthandler_exit_on_timeout")
