"""How much of a verification was judged."""

import numpy as np
import pytest

from lucid_deploy.parity.measure.compare import TensorId, TensorRows
from lucid_deploy.parity.measure.coverage import FREE_RUNNING, Coverage, unproven
from lucid_deploy.parity.measure.gate import Gate, compare_rows

K0, Y0 = TensorId(0, 0), TensorId(0, 1)


def comparison(tensor, gate, scenario="random", schedule="one-shot", rows=(1.0, 1.0)):
    values = np.array(rows)[None, :, None]
    return compare_rows(TensorRows(values), TensorRows(values), tensor, Gate(gate, gate / 4), scenario, schedule)


def test_what_could_not_fail_is_not_counted_as_judged():
    found = Coverage.of([comparison(K0, 1e-3), comparison(K0, 2.0), comparison(Y0, 0.1, rows=(10.0, 0.5, 2.0))])
    assert (found.total, found.judged, found.unjudged) == (3, 2, 1)
    assert (found.blind_positions, found.positions) == (1, 5)  # of those that were judged


def test_a_tensor_that_every_gate_lets_through_is_unproven():
    items = [
        comparison(K0, 1.0),
        comparison(K0, 1.0, "correlated"),
        comparison(Y0, 1.0),
        comparison(Y0, 0.5, "correlated"),
    ]
    assert unproven(items) == (K0,)


def test_each_way_of_feeding_must_be_judged_somewhere():
    items = [comparison(K0, 0.5), comparison(K0, 2.0, schedule="by token"), comparison(Y0, 0.5)]
    assert unproven(items) == (K0,)
    assert unproven([*items, comparison(K0, 0.1, "correlated", "by token")]) == ()


@pytest.mark.parametrize("schedule", [FREE_RUNNING, "in turns"])
def test_what_one_scenario_alone_is_run_in_need_not_be_judged(schedule):
    assert unproven([comparison(K0, 0.5), comparison(K0, 2.0, schedule=schedule)]) == ()
