"""The programs that are installed. What they consist of is imported when they run: Ctrl-C until then is one line, too.

Only what comes before this file can still end in a traceback: Python's own start, and the package's ``__init__``.
"""

from __future__ import annotations

from lucid_deploy.interrupts import begin


def main() -> None:
    """Run ``lucid-deploy``."""
    begin()
    from lucid_deploy.cli import main as commands

    commands()


def conformance() -> None:
    """Run ``lucid-conformance``."""
    begin()
    from lucid_deploy.cli.conformance import main as command

    command()
