"""A pytest plugin: a test that hangs in C, or crashes, ends its process once; the other tests run, and the run fails.

It closes four gaps. pytest cancels its own guard (``faulthandler_timeout``) at a test's first failure, for the
debugger's sake, and leaves the clean-up unguarded. pytest-xdist's ``loadfile`` gives a test that ended its worker to
the next worker, until none is left. A worker in the place of another one waits for good with the last test of all. And
a worker that ends in the clean-up of its last test counts for nothing there.
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadFileScheduling

STDERR = pytest.StashKey[int]()
CRASHED = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[STDERR] = os.dup(2)  # while tests run, pytest has another file here
    config.stash[CRASHED] = []


def pytest_unconfigure(config: pytest.Config) -> None:
    os.close(config.stash[STDERR])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    limit = float(item.config.getini("faulthandler_timeout"))
    faulthandler.dump_traceback_later(limit, exit=True, file=item.config.stash[STDERR])
    return (yield)  # pytest cancels it behind the test


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    from xdist.scheduler import LoadFileScheduling

    class CrashedTestsAreDone(LoadFileScheduling):
        """Gives the rest of a file to another worker, without the test that ended the first one."""

        def remove_node(self, node: Any) -> str | None:
            open_tests = ((unit, test) for unit in self.assigned_work[node].values() for test in unit if not unit[test])
            unit, crashed = next(open_tests, ({}, None))
            if crashed is not None:
                unit[crashed] = True
            work = self.assigned_work[node]  # units that are done, too: given to a worker, it would wait for ever
            for name in [name for name, unit in work.items() if all(unit.values())]:
                del work[name]
            super().remove_node(node)
            return crashed

        def _reschedule(self, node: Any) -> None:
            """A worker keeps its last test until it hears of another one, or that there is none; so it must hear."""
            if node not in self.registered_collections:
                return  # a new one; when it has collected, it is scheduled
            super()._reschedule(node)
            while not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
                if self.workqueue:
                    self._assign_work_unit(node)
                else:
                    node.shutdown()

    return CrashedTestsAreDone(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    if error:
        node.config.stash[CRASHED].append(f"worker {node.gateway.id}: {error}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.stash[CRASHED] and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for crash in config.stash[CRASHED]:
        terminalreporter.write_line(crash, red=True)
