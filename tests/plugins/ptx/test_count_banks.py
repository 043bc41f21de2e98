"""The command that counts cycles of shared memory: of a loop that is shipped, and of one that is given by hand."""

from __future__ import annotations

import itertools
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("triton", reason='compiled kernels need Triton: pip install -e ".[kernels]"')

from tests.plugins.ptx.banks import Count
from tests.plugins.ptx.count_banks import main, worst
from tests.plugins.ptx.source import Instruction

PAGE = Path(__file__).resolve().parents[3] / "docs" / "tensorrt.md"
COLUMNS = "| GPU | kernel | type | width | tile | model | counted | copies | largest | by |\n"
VARIANT = "delta_state_bfloat16_d64_u4"


def test_instructions_that_lose_most_come_first_and_those_that_lose_nothing_do_not_come() -> None:
    counts = [Count(8, 4), Count(4, 4), Count(40, 8), Count(9, 8)]
    accesses = {Instruction("ld.shared.b32", (), None, False, line): count for line, count in enumerate(counts)}
    assert [each.line for each, _ in worst(accesses, 2)] == [2, 0]
    assert [each.line for each, _ in worst(accesses, 9)] == [2, 0, 3]


def test_a_name_that_no_loop_has_is_refused() -> None:
    result = CliRunner().invoke(main, ["--kernel", "decode_combine,nothing"])
    assert result.exit_code == 2 and "no loop's variant begins with decode_combine or nothing" in result.output


@pytest.mark.slow
@pytest.mark.skipif(version("triton") != "3.9.0", reason="docs/tensorrt.md records what Triton 3.9.0 compiles")
def test_the_page_says_what_is_counted() -> None:
    result = CliRunner().invoke(main, ["--arch", "90", "--kernel", VARIANT], catch_exceptions=False)
    arch, _, model, _, counted, copies, largest, _, unit, *tile = result.output.splitlines()[1].split()
    lines = PAGE.read_text(encoding="utf-8").split(COLUMNS)[1].splitlines()
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in itertools.takewhile(lambda s: s.startswith("|"), lines)]
    [row] = [row for row in rows if row[:4] == ["9.0", "delta rule", "bfloat16", "64"]]
    assert arch == "90" and row[4:] == [" ".join(tile).strip("()"), model, counted, copies, largest, unit]
