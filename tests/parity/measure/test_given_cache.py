"""Steps from given rows: what they ask of a session, and that a fault in reading shows which rounding would hide."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lucid_deploy.model.scenarios import Scenario
from lucid_deploy.parity.measure import given_cache
from lucid_deploy.parity.measure.compare import TensorRows, Trace, record
from tests.parity.small_models import VOCAB, session, small_model

SCENARIO = Scenario("some", np.arange(20) % VOCAB, np.arange(6) % VOCAB)


@pytest.fixture(scope="module")
def model():
    return small_model()


def answers(model, rows, dtype=torch.float32):
    ticks = []
    found = given_cache.answers(session(model, dtype), SCENARIO, rows, lambda: ticks.append(0))
    assert len(ticks) == given_cache.calls(session(model, dtype), SCENARIO)
    return found


def test_the_same_rows_give_the_same_answers_within_the_gates_of_arithmetic(model):
    rows = record(session(model, torch.float64), SCENARIO)
    exact = answers(model, rows, torch.float64)
    own = answers(model, rows)
    gates = given_cache.derive([exact], [own], "float32")
    found = given_cache.compare(own, exact, gates, SCENARIO)
    assert {item.schedule for item in found} == {"decode from given rows", "prefill behind given rows"}
    assert all(item.failed_at is None for item in found)


def test_keys_that_are_read_too_small_are_found(model):
    rows = record(session(model, torch.float64), SCENARIO)
    exact = answers(model, rows, torch.float64)
    gates = given_cache.derive([exact], [answers(model, rows)], "float32")
    smaller = Trace(
        {name: TensorRows(r.values * (0.99 if name.is_keys else 1), r.start) for name, r in rows.tensors.items()}
    )
    found = given_cache.compare(answers(model, smaller), exact, gates, SCENARIO)
    assert all(item.failed_at is not None for item in found)
