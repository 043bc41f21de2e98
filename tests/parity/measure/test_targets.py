"""Targets: which scenarios are looked into, and gates set by hand."""

import copy
import math
from dataclasses import replace

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.parity import check, explained_scenarios
from lucid_deploy.parity.measure.extent import QUICK
from tests.parity.small_models import session


def test_a_tolerance_replaces_the_gates_and_is_said_first(model, targets):
    broken = copy.deepcopy(model)
    broken.lm_head.weight.mul_(1.01)
    report = check(session(broken), targets.with_tolerance(0.05))
    assert report.passed and not report.within_derived
    assert report.verdict().startswith("The tolerance of 0.05 was set by hand; the gates derived from PyTorch did not")
    assert "with them it would have failed" in report.verdict()
    assert report.to_dict()["gate"]["tolerance"] == 0.05 and report.to_dict()["gate"]["within_derived"] is False
    assert not check(session(broken), targets.with_tolerance(0.005)).passed
    sound = check(session(model), targets.with_tolerance(0.05))
    assert sound.within_derived and "with them it would have passed" in sound.verdict()


@pytest.mark.parametrize("tolerance", [0, -1, 1, 1.5, math.nan, math.inf])
def test_impossible_tolerances(targets, tolerance):
    with pytest.raises(LucidError, match="above 0 and below 1"):
        targets.with_tolerance(tolerance)


def test_the_failing_scenario_is_looked_into_first(targets):
    def names(targets, failing=None):
        return [item.scenario.name for item in explained_scenarios(targets, failing)]

    assert names(targets) == ["correlated", "greedy"]
    assert names(targets, "random") == ["random", "correlated", "greedy"]
    assert names(targets, "greedy") == ["greedy", "correlated"]
    assert names(replace(targets, extent=QUICK), "random") == ["random"]
