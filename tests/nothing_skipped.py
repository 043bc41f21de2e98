"""In continuous integration a test that skips for want of a package fails the run: everything is installed there."""

from __future__ import annotations

import os

import pytest

WANTS_A_PACKAGE = ("pip install", "could not import", "is not installed")


def missing_packages(terminal: pytest.TerminalReporter) -> list[str]:
    """Return the tests that were skipped because a package is missing, with their reasons."""
    found = []
    for report in terminal.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if any(words in reason for words in WANTS_A_PACKAGE):
            found.append(f"{report.nodeid}: {reason}")
    return found


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run, not silently pass over what was not run."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if not os.environ.get("CI") or terminal is None or hasattr(session.config, "workerinput"):
        return
    if found := missing_packages(terminal):
        terminal.write_line("\nSkipped for want of a package, which is a failure here:\n" + "\n".join(found), red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
