"""Sentences: plain, and none that says more than was found."""

from dataclasses import replace

import numpy as np
import pytest

from lucid_deploy.parity import check
from lucid_deploy.parity.measure.gate import Gate
from lucid_deploy.parity.measure.measurement import FreeRun, Reference
from lucid_deploy.parity.show import words
from tests.parity.small_models import session


@pytest.fixture(scope="module")
def report(model, targets):
    return replace(check(session(model), targets), left_out=())  # fewer steps are taken to save time


def wide(report, count):
    """Let so many comparisons have a gate that judges nothing."""
    changed = [
        replace(item, gate=Gate(2.0 + index, 0.5), blind_positions=len(item.errors)) if index < count else item
        for index, item in enumerate(report.comparisons)
    ]
    return replace(report, comparisons=tuple(changed))


def test_the_reference_is_named(report):
    golden = Reference("golden file", "a golden file", independent=True)
    line = words.coverage_line(replace(report, reference=golden))
    assert line.endswith("comparisons against a golden file.")


def test_what_was_left_out_is_mentioned_first(report):
    assert "left out" in words.coverage_line(replace(report, left_out=("x",)))
    assert "left out" not in words.coverage_line(replace(report, left_out=()))


@pytest.mark.parametrize(("count", "start"), [(1, "1 comparison was"), (3, "3 comparisons were")])
def test_the_widest_gate_of_what_was_not_judged_is_named(report, count, start):
    (line,) = words.unjudged_lines(wide(report, count))
    assert line.startswith(f"{start} not judged")
    assert f"{1.0 + count:.2g}: 4 times PyTorch's own error" in line


def test_nothing_is_said_where_everything_was_judged(report):
    assert list(words.unjudged_lines(report)) == []


def test_blind_positions_are_counted(report):
    first = replace(report.comparisons[0], blind_positions=2)
    (line,) = words.unjudged_lines(replace(report, comparisons=(first, *report.comparisons[1:])))
    assert line.startswith("At 2 of ")


def test_a_verdict_counts_only_what_was_judged(report):
    total = len(report.comparisons)
    assert f"{total} comparisons in float32" in words.verdict(report) and "not be judged" not in words.verdict(report)
    assert f"{total - 2} comparisons in float32" in words.verdict(wide(report, 2))
    assert words.verdict(wide(report, 2)).endswith("of its gate; 2 more could not be judged.")
    worst = max(item.severity for item in report.comparisons[2:])
    assert f"the worst error is {worst:.2f} of its gate" in words.verdict(wide(report, 2))


def test_growth_is_a_sentence(report):
    grown = [replace(item, errors=1e-7 * np.arange(1, 44) ** 0.5, start=0) for item in report.comparisons[:2]]
    line = words.growth_line(grown)
    assert line.startswith("The error grows along the sequence in 2 of 2 comparisons")
    assert "the mean error over the last quarter of positions is 2.8 times that over the first quarter" in line
    assert words.growth_line([]) == ""


def test_a_free_run_is_a_sentence():
    assert (
        words.free_run_line(FreeRun("greedy", 8, 8)) == "Generating freely (greedy): all 8 tokens are the reference's."
    )
    assert "3 of 8 tokens are the reference's before the first other one" in words.free_run_line(FreeRun("x", 8, 3))


def test_advice_follows_a_failure_only(report):
    assert words.advice(report) == ""
    failed = replace(report, comparisons=(replace(report.comparisons[0], failed_at=3), *report.comparisons[1:]))
    assert "torch ran the artifact's weights without its graphs" in words.advice(failed)
    assert "--kernels functions" in words.advice(
        replace(failed, runtime="onnxruntime", runs_graphs=True, plainer="try --kernels functions")
    )


def test_standard_attention_has_no_conditioning():
    assert words.conditioning_line(()) == ""
