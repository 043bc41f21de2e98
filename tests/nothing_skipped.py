"""A test that is skipped because a package is missing fails the run: `make test` installs every package."""

from __future__ import annotations

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
    """Fail the run if a test was skipped because a package is missing."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None or hasattr(session.config, "workerinput"):
        return
    if found := missing_packages(terminal):
        lines = ["", "Skipped because a package is missing, which fails the run:", *found]
        terminal.write_line("\n".join(lines), red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
