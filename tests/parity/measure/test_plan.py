"""Phases and the time that is left."""

import pytest

from lucid_deploy.parity.measure.plan import DAMPING, Phase, PhaseTracker


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def planned(clock, *phases):
    steps = []
    return PhaseTracker([Phase(*phase) for phase in phases], steps.append, clock), steps


def test_phases_are_counted_and_what_is_left_is_planned(clock):
    plan, steps = planned(clock, ("one", 10.0), ("two", 30.0))
    assert plan.seconds == 40
    plan.update("one", 0, 5)
    plan.update("two", 0, 3)
    assert [(s.phase, s.index, s.phases, s.done, s.total) for s in steps] == [
        ("one", 1, 2, 0, 5),
        ("two", 2, 2, 0, 3),
    ]
    assert steps[0].left == pytest.approx(40)


def test_a_machine_half_as_fast_takes_twice_as_long(clock):
    plan, steps = planned(clock, ("one", 10.0), ("two", 30.0))
    plan.update("one", 0, 5)
    clock.now += 20
    plan.update("two", 0, 3)
    assert steps[-1].left == pytest.approx(30 * (20 + DAMPING) / (10 + DAMPING))
    clock.now += 30  # half of a phase of 60
    plan.update("two", 3, 6)
    assert steps[-1].left == pytest.approx(15 * (50 + DAMPING) / (25 + DAMPING))
    plan.update("two", 6, 6)
    assert steps[-1].left == 0


def test_a_phase_that_was_not_planned_is_put_in(clock):
    plan, steps = planned(clock, ("one", 10.0), ("two", 10.0))
    plan.update("one", 1, 1)
    plan.update("surprise", 0, 4)
    clock.now += 3
    plan.update("surprise", 1, 4)
    assert (steps[-1].index, steps[-1].phases) == (2, 3)
    assert steps[-1].left == pytest.approx(10 * (3 + DAMPING) / (10 + DAMPING) + 9)  # three quarters at its own pace
    plan.update("two", 0, 1)
    assert (steps[-1].index, steps[-1].phases) == (3, 3)


def test_a_planned_phase_that_never_runs_is_passed_over(clock):
    plan, steps = planned(clock, ("one", 1.0), ("not run", 50.0), ("three", 1.0))
    plan.update("one", 1, 1)
    plan.update("three", 0, 1)
    assert (steps[-1].index, steps[-1].phases) == (3, 3)
    assert steps[-1].left < 2


def test_work_without_calls_has_no_share(clock):
    plan, steps = planned(clock, ("one", 1.0))
    plan.update("one", 0, 0)
    assert steps[-1].left == pytest.approx(1)
