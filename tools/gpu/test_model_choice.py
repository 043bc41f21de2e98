"""The constants that the models choose, and that the stored ones are what they chose."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton", reason='compiled kernels are read with Triton: pip install -e ".[kernels]"')

from lucid_deploy.errors import LucidError
from lucid_deploy.plugins.hosts.triton.aot import ARCHITECTURES
from lucid_deploy.plugins.shared.plan import PADDED_WIDTHS, Choice, choice
from lucid_deploy.plugins.table import FLOATS
from tools.gpu.memory_model import CARDS, memory_cycles
from tools.gpu.model_choice import OPERATORS, TIE, Modelled, best, model, others_spill
from tools.gpu.static_report import KernelReport

REPORT = KernelReport("solve", 90, {}, 4, 255, 0, 0, 0, 8, 400, 0, 0, 0, {"issue": 400.0}, 400.0, "issue")


def solve(rows: int, columns: int, cycles: float | None, loop_spills: int = 0) -> Modelled:
    constants, report = Choice(rows, columns, 4, 2), replace(REPORT, cycles=cycles, loop_spills=loop_spills)
    return Modelled(constants, report, OPERATORS["precondition"].cycles(constants, report))


def decode(
    tokens: int, cycles: float, *, stages: int = 3, loop: int = 100, loop_spills: int = 0, arch: int = 90
) -> Modelled:
    """Return a made-up candidate in bfloat16 at width 128: two programs of four warps fit."""
    constants = Choice(0, tokens, 4, stages)
    report = replace(
        REPORT,
        variant="decode_split_bfloat16_d128_u8_r16",
        arch=arch,
        constants={"BLOCK_N": tokens, "BLOCK_D": 128},
        loop=loop,
        loop_spills=loop_spills,
        cycles=cycles,
    )
    return Modelled(constants, report, OPERATORS["decode_attention"].cycles(constants, report))


def test_cycles_are_compared_for_the_same_number_of_elements() -> None:
    small, large = solve(32, 32, 300.0), solve(64, 64, 800.0)
    assert (small.cycles, large.cycles) == (300, 200)
    assert best([small, large]) == large


def test_what_spills_is_chosen_only_if_all_do() -> None:
    spills, clean = solve(64, 64, 400.0, loop_spills=2), solve(64, 64, 900.0)
    assert best([spills, clean]) == clean
    assert best([spills, solve(64, 64, 500.0, loop_spills=1)]) == spills


def test_what_is_not_known_is_not_chosen() -> None:
    refused, unknown = Modelled(Choice(64, 64, 4, 2), None, None, "too much shared memory"), solve(64, 64, None)
    assert best([refused, unknown, solve(32, 32, 900.0)]).cycles == 900
    with pytest.raises(LucidError, match="knows none of the candidates"):
        best([refused, unknown])


def test_decoding_that_waits_for_memory_takes_what_memory_takes() -> None:
    """Of 1024 tokens, whose K and Y are 512 bytes each, on the card with most bandwidth for a multiprocessor."""
    memory = memory_cycles(1024 * 512, CARDS[90][0])
    assert CARDS[90][0].name == "H200"
    assert decode(64, 600.0).cycles == pytest.approx(memory) == decode(32, 300.0).cycles
    assert decode(64, 2000.0).cycles == 16 * 2000


def test_of_tiles_that_wait_alike_the_one_that_computes_least_is_chosen() -> None:
    idle, busy = decode(64, 600.0), decode(32, 400.0)
    assert best([busy, idle]) == idle


def test_a_tile_that_is_copied_too_late_is_not_chosen_for_its_few_cycles() -> None:
    late, early = decode(16, 100.0, stages=2), decode(16, 120.0, stages=4)
    assert late.cycles > TIE * early.cycles
    assert best([late, early]) == early


def test_of_equals_the_first_whose_other_forms_do_not_spill_is_chosen() -> None:
    first, second, slow = decode(64, 600.0), decode(32, 400.0), decode(64, 5000.0)
    assert best([first, second, slow], lambda constants: constants == first.choice) == second
    assert best([first, second, slow], lambda constants: True) == first, "not one that takes longer"


def test_what_cannot_be_compiled_with_more_rows_is_not_chosen() -> None:
    first, second = decode(64, 600.0), decode(32, 400.0)
    assert best([first, second], lambda constants: None if constants == first.choice else True) == second
    with pytest.raises(LucidError, match="in all of its forms"):
        best([first, second], lambda constants: None)


def test_what_cannot_be_compiled_says_why(tmp_path: Path) -> None:
    no_power_of_two = Choice(64, 16, 4, 1, 24)
    [found] = model("precondition", 86, "float32", 64, choices=[no_power_of_two], cache=tmp_path)
    assert found.report is None and found.reason.startswith("Triton failed to compile precondition_float32_d64_u4")


# Of the stored entries some whose candidates compile fast: the solve in both precisions, on two generations, decoding
# and the delta rule, each once where the first candidate spills or is slower, and is not the one.
@pytest.mark.slow
@pytest.mark.usefixtures("one_compiler")
@pytest.mark.parametrize(
    ("operator", "arch", "dtype", "padded"),
    [
        ("precondition", 80, "float16", 64),
        ("precondition", 90, "float32", 64),
        ("decode_attention", 90, "bfloat16", 64),
        ("decode_attention", 80, "float16", 32),
        ("delta_rule", 90, "float32", 64),
    ],
)
def test_the_stored_table_is_what_the_model_chooses(operator: str, arch: int, dtype: str, padded: int) -> None:
    chosen = best(model(operator, arch, dtype, padded), functools.partial(others_spill, operator, arch, dtype, padded))
    assert chosen.report is not None and chosen.report.loop_spills == 0
    assert choice(OPERATORS[operator].tuned, arch, dtype, padded) == chosen.choice


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_entry_says_that_a_model_chose_it_or_why_it_was_kept_and_none_that_it_was_measured(operator: str) -> None:
    tuned = json.loads(OPERATORS[operator].tuned.read_text())
    every = {f"{arch} {dtype} {padded}" for arch in ARCHITECTURES for dtype in FLOATS for padded in PADDED_WIDTHS}
    measured = {name for name in every if name.split()[0] in tuned["measured_on"]}
    named = [*tuned["chosen_by_model"], *tuned["kept"]]
    assert len(named) == len(set(named)) and every - measured <= set(named) <= every
    for name in named:
        arch, dtype, padded = name.split()
        constants = choice(OPERATORS[operator].tuned, int(arch), dtype, int(padded))
        assert constants in OPERATORS[operator].candidates(dtype, int(padded), int(arch))


# The kept entry and what the model takes: both are compiled.
