"""The preconditioner's compiled code, run by the emulator in ``tools/ptx``, against float64."""

import math
import re

import pytest

from lucid_deploy.plugins.hosts.triton.launch import precondition
from lucid_deploy.plugins.precondition.reference import precondition_reference
from lucid_deploy.plugins.shared.plan import Choice
from tests.plugins.kernel_cases import EPS, Case, relative_error, within_gate
from tests.plugins.precondition.kernel_runs import (
    exact_precondition,
    precondition_inputs,
    run_precondition,
)
from tools.ptx.memory import Fault

# The PTX for 8.6 is shipped for newer GPUs too. 8.0, 8.6, 8.9 and 12.0 use int8 MMAs in bfloat16, 9.0 MMAs of warp
# groups, 10.0 tensor memory, and 12.0 arithmetic on two numbers in a register.
CASES = [
    (86, Case(new=1, past=1, dtype="bfloat16", keys=0.99)),
    (86, Case(new=65, past=20, keys=0.99, padded=True, batch=2, heads=1)),
    (86, Case(new=129, past=100, dtype="float16", keys="repeated", padded=True, batch=2, heads=1)),
    (86, Case(new=129, past=100, dtype="bfloat16", keys=0.99, heads=1)),
    (86, Case(new=65, past=1, width=68, dtype="float16", heads=1, training=True)),
    (86, Case(new=65, past=1, width=256, dtype="bfloat16", heads=1)),
    (80, Case(new=129, past=100, dtype="bfloat16", keys=0.99, padded=True, batch=2, heads=1)),
    (86, Case(new=130, past=65, dtype="bfloat16", keys="repeated", heads=1, training=True)),
    (89, Case(new=65, past=20, width=32, dtype="bfloat16", keys=0.99, heads=1)),
    (90, Case(new=129, past=33, dtype="bfloat16", keys=0.99, padded=True, batch=2, heads=1)),
    (90, Case(new=130, past=40, dtype="float16", heads=1, training=True)),
    (90, Case(new=70, past=40, width=128, keys=0.99, heads=1)),
    (100, Case(new=65, past=33, dtype="bfloat16", keys=0.99, padded=True, heads=1)),
    (100, Case(new=65, past=33, keys=0.99, heads=1, training=True)),
    (120, Case(new=65, past=100, dtype="bfloat16", keys="repeated", heads=1)),
    (120, Case(new=129, past=1, width=128, dtype="bfloat16", keys=0.9, heads=1)),
]
TURNS = Case(new=200, past=20, dtype="bfloat16", heads=2)
SOLVE = "precondition_kernel"
ALONE = Case(new=65, past=100, dtype="bfloat16", heads=1)


@pytest.mark.parametrize(("arch", "case"), CASES, ids=str)
def test_error_is_that_of_rounding(arch, case, compiled):
    launcher = compiled(arch)
    result = run_precondition(case)
    assert within_gate(result["error"], result["plain"], case.dtype), result
    assert result["padding_is_v"]
    assert [name.split("_")[0] for name in launcher.launched] == ["key", "precondition"]


@pytest.mark.parametrize("number", [math.nan, math.inf, 3e38], ids=str)
@pytest.mark.parametrize("name", ["k", "v", "k_past", "y_past"])
def test_non_finite_inputs_reach_the_same_rows_as_with_two_parts_of_bfloat16(name, number, compiled):
    """Rounding the NaN of GPUs, 0x7fffffff, as an integer would give 0."""
    compiled(86)
    inputs = precondition_inputs(Case(new=70, past=70, width=32, dtype="bfloat16", heads=1))
    inputs[name] = inputs[name].clone()
    inputs[name][:, :, -1, 3] = number  # the only new token of its tile, and one of six past ones
    found = precondition(**inputs, eps=EPS)
    two_parts = precondition(**inputs, eps=EPS, tuned=Choice(64, 64, 4, 2))
    assert found.isfinite().equal(two_parts.isfinite())
    assert found.isfinite().all() == (name in ("v", "y_past") and number == 3e38)


@pytest.mark.parametrize("number", [math.nan, math.inf, 3e38], ids=str)
@pytest.mark.parametrize("name", ["k", "v", "k_past", "y_past"])
def test_no_row_of_float32_is_finite_where_the_reference_is_not(name, number, compiled):
    """With float16 parts an infinity may become NaN, but neither may become a finite number."""
    compiled(86)
    inputs = precondition_inputs(Case(new=100, past=70, heads=1))
    inputs[name] = inputs[name].clone()
    inputs[name][:, :, 65, 3] = number
    wanted = precondition_reference(*inputs.values(), EPS).isfinite()
    assert bool((precondition(**inputs, eps=EPS).isfinite() <= wanted).all())
    assert wanted.all() == (number == 3e38), "a key whose squares overflow float32 is normalized to 0"


@pytest.mark.parametrize("seed", [0, 1])
def test_programs_that_run_at_the_same_time_wait_for_each_other(seed, compiled):
    inputs = precondition_inputs(TURNS)
    compiled(86)
    alone = precondition(**inputs, eps=EPS)
    compiled(86, resident=5, seed=seed)
    together = precondition(**inputs, eps=EPS)
    assert together.equal(alone)
    assert relative_error(together, exact_precondition(*inputs.values())) < 4e-3


@pytest.mark.parametrize(
    ("taken_out", "said"),
    [
        (r"cp\.async\.wait_group\s+\d;", "an asynchronous copy"),
        (r"\.release(?=\.)", "without release and acquire"),
        (r"\.acquire(?=\.)", "without release and acquire"),
    ],
)
def test_removing_a_wait_release_or_acquire_raises_a_fault(taken_out, said, compiled):
    """The emulator raises Fault if any single one of them is removed from the solve."""
    launcher = compiled(86, resident=2, seed=3)
    (count,) = counted(launcher, taken_out)
    assert count > 0
    for number in range(count):
        launcher.change = without(taken_out, number)
        with pytest.raises(Fault, match=said):
            precondition(**precondition_inputs(ALONE), eps=EPS)


def test_removing_a_barrier_mostly_raises_a_fault(compiled):
    """Every fourth barrier is removed in turn; the emulator notices most, as few are right beside another barrier."""
    launcher = compiled(86, resident=2, seed=3)
    (count,) = counted(launcher, BARRIER)
    missed = 0
    tried = range(0, count, 4)
    for number in tried:
        launcher.change = without(BARRIER, number)
        try:
            precondition(**precondition_inputs(ALONE), eps=EPS)
        except Fault as fault:
            missed += "no barrier between them" in str(fault) or "not yet filled" in str(fault)
    assert missed >= 0.7 * len(tried)


BARRIER = r"bar\.sync\s+0;"


def counted(launcher, pattern):
    """Return how often a pattern is found in the solve."""
    found = []

    def look(kernel, text):
        if kernel == SOLVE:
            found.append(len(re.findall(pattern, text)))
        return text

    launcher.change = look
    precondition(**precondition_inputs(ALONE), eps=EPS)
    return found


def without(pattern, number):
    """Return a change that removes one match of a pattern from the solve's PTX."""

    def change(kernel, text):
        if kernel != SOLVE:
            return text
        place = list(re.finditer(pattern, text))[number]
        return text[: place.start()] + text[place.end() :]

    return change
