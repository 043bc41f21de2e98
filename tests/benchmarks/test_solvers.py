"""benchmarks/solvers.py prints a line for each way to solve."""

from __future__ import annotations

import solvers
from click.testing import CliRunner


def test_it_measures_what_is_asked() -> None:
    result = CliRunner().invoke(
        solvers.main, ["--lengths", "48", "--questions", "4", "--rounds", "1", "--no-write"], catch_exceptions=False
    )
    lines = result.stdout.splitlines()
    assert len(lines) == 4 * 3 and all("error" in line and "of 4 right" in line for line in lines)
