"""What a measurement says about itself."""

import numpy as np

from lucid_deploy.parity.measure.compare import TensorId, TensorRows
from lucid_deploy.parity.measure.gate import Gate, compare_rows
from lucid_deploy.parity.measure.measurement import OWN_MODEL, Measurement, ScenarioInfo

K0, Y0 = TensorId(0, 0), TensorId(0, 1)


def comparison(tensor, error, gate=1e-3, schedule="one-shot", rows=3):
    reference = np.ones((1, rows, 1))
    return compare_rows(
        TensorRows(reference * (1 + error)), TensorRows(reference), tensor, Gate(gate, gate / 4), "random", schedule
    )


def measurement(*comparisons, unproven=()):
    scenarios = (ScenarioInfo("random", 3, 0), ScenarioInfo("greedy", 5, 2))
    return Measurement("torch", "float32", 0, scenarios, comparisons, (), unproven, "torch")


def test_what_was_not_judged_is_not_the_worst_of_its_tensor():
    judged, vacuous = comparison(K0, 1e-4), comparison(K0, 9e7, gate=1e8, schedule="by token")
    assert measurement(vacuous, judged).worst_by_tensor() == {K0: judged}
    assert measurement(vacuous).worst_by_tensor() == {K0: vacuous}


def test_the_worst_is_measured_by_its_gate():
    near, far = comparison(K0, 9e-4), comparison(K0, 5e-3, gate=1e-1)
    assert measurement(far, near).worst_by_tensor()[K0] is near


def test_sizes_have_no_curve():
    long, size = comparison(K0, 1e-4), comparison(K0, 9e-4, rows=1)
    assert measurement(long, size).worst_by_tensor(along_positions=True) == {K0: long}


def test_passing_takes_gates_that_mean_something():
    good = comparison(K0, 1e-4)
    assert measurement(good).passed
    assert not measurement(good, unproven=(Y0,)).passed
    failed = measurement(good, comparison(Y0, 0.5))
    assert not failed.passed and failed.failure.tensor == Y0


def test_the_reference_is_the_toolkits_own_unless_said_otherwise():
    found = measurement(comparison(K0, 0))
    assert found.reference is OWN_MODEL and not found.reference.independent
    assert found.longest == 7
