"""The command that counts cycles of shared memory: of a loop that is shipped, and of one that is given by hand."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

pytest.importorskip("triton", reason='compiled kernels need Triton: pip install -e ".[kernels]"')

from tools.ptx.banks import Count
from tools.ptx.count_banks import main, worst
from tools.ptx.source import Instruction


def test_instructions_that_lose_most_come_first_and_those_that_lose_nothing_do_not_come() -> None:
    counts = [Count(8, 4), Count(4, 4), Count(40, 8), Count(9, 8)]
    accesses = {Instruction("ld.shared.b32", (), None, False, line): count for line, count in enumerate(counts)}
    assert [each.line for each, _ in worst(accesses, 2)] == [2, 0]
    assert [each.line for each, _ in worst(accesses, 9)] == [2, 0, 3]


def test_a_name_that_no_loop_has_is_refused() -> None:
    result = CliRunner().invoke(main, ["--kernel", "decode_combine,nothing"])
    assert result.exit_code == 2 and "no loop's variant begins with decode_combine or nothing" in result.output
