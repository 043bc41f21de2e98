"""Worker processes: limits on time and memory, and what happens when one ends."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import pytest

from lucid_deploy import bounded_process
from lucid_deploy.bounded_process import BoundedProcess, Bounds, TooCostly, WorkerFault, WorkerKilled
from lucid_deploy.errors import LucidError

WORKER = """if True:
    import resource, time
    from lucid_deploy.bounded_process import bound_memory, serve
    from lucid_deploy.errors import LucidError
    def handle(task):
        if task == b"loop":
            while True: pass
        if task == b"stuck":
            sum(range(10 ** 12))
        if task == b"memory":
            return b"x" * (10 ** 10)
        if task == b"refuse":
            raise LucidError("not this")
        return task + b"!" + bytes([1 // (task != b"bug")])
    def open_worker(setup, bounds):
        bound_memory(bounds.memory)
        return setup.upper(), handle
    serve(open_worker)"""


def worker(program: str = WORKER, seconds: float = 0.3) -> BoundedProcess:
    process = BoundedProcess("unused", b"setup", Bounds(seconds, 100 << 20), "This task")
    process.command = (sys.executable, "-P", "-c", program)
    return process


def test_tasks_that_end_leave_the_process_running() -> None:
    with worker() as process:
        assert process.ask(b"a") == b"a!\x01" and process.ready == b"SETUP"
        pid = process._process.pid
        with pytest.raises(LucidError, match="not this"):
            process.ask(b"refuse")
        with pytest.raises(WorkerFault, match="ZeroDivisionError"):
            process.ask(b"bug")
        if sys.platform.startswith("linux"):
            with pytest.raises(TooCostly, match="This task needed more than 100 MiB of memory"):
                process.ask(b"memory")
        assert process.ask(b"b" * 100_000)[:1] == b"b" and process._process.pid == pid
        assert os.getsid(pid or 0) == pid  # signals to the parent's group do not reach it
        for number in ("SIGTERM", "SIGINT", "SIGHUP"):
            os.kill(pid or 0, getattr(signal, number))
        assert process.ask(b"c") == b"c!\x01"
    assert not process.running


def test_a_process_whose_time_was_over_or_that_was_killed_is_started_again() -> None:
    with worker() as process:
        process.start()
        for task in (b"loop", b"stuck"):
            pid = process._process.pid
            with pytest.raises(TooCostly, match=r"This task took more than 0\.3 s of processor time\. Shorten it\."):
                process.ask(task)
            assert process.ask(b"a") == b"a!\x01" and process._process.pid != pid
        process.kill()
        try:  # raises if the process ends during the task
            assert process.ask(b"a") == b"a!\x01"
        except WorkerKilled as error:
            assert "was killed" in str(error)
        assert process.ask(b"a") == b"a!\x01"


def test_a_process_that_does_not_start_gives_one_error(capfd: pytest.CaptureFixture[str]) -> None:
    for program, status in (("raise ImportError('no memory.')", 1), ("import os; os.kill(os.getpid(), 9)", -9)):
        message = rf"did not start \(exit status {status}\)\. Is there a limit"
        with worker(program) as process, pytest.raises(LucidError, match=message):
            process.start()
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is bounded on Linux")
def test_a_limit_of_the_user_on_memory_stays() -> None:
    limit = """import resource
most = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (50 << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
"""
    with worker(limit + WORKER) as process:
        assert process.ask(b"a") == b"a!\x01"


def test_after_ctrl_c_a_late_reply_is_not_that_of_the_next_task(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_source: Any) -> bytes:
        raise KeyboardInterrupt

    with worker() as process:
        process.start()
        with monkeypatch.context() as patch:
            patch.setattr(bounded_process.pickle, "load", interrupted)
            with pytest.raises(KeyboardInterrupt):
                process.ask(b"a")
        assert not process.running and process.ask(b"b") == b"b!\x01"
