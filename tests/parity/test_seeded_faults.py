"""Seeded faults in a PyTorch candidate fail in the tensor, at the position and in the schedule where they were put."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import lucid_deploy.model.attention.lucid as lucid
from lucid_deploy.errors import CheckFailed
from lucid_deploy.parity.compare import check
from lucid_deploy.plugins.shared.keys import normalize_keys
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.parity.small_models import fed, session


def assert_caught(candidate, targets, tensor, position=None, schedule=None):
    report = check(candidate, fed(targets, schedule))
    failure = report.first_failure
    assert not report.passed
    assert failure is not None
    assert str(failure.tensor) == tensor
    assert str(failure.tensor) in report.verdict()
    assert not failure.error <= failure.gate.limit
    if position is not None:
        assert failure.failed_at == position
    if schedule is not None:
        assert failure.schedule == schedule


# Weights


@pytest.mark.parametrize(
    ("weight", "tensor"),
    [
        ("model.layers.1.self_attn.k_proj.weight", "layer 1 K"),
        ("model.layers.1.self_attn.v_proj.weight", "layer 1 Y"),
        ("model.layers.1.self_attn.q_proj.weight", "layer 2 K"),
        ("model.layers.1.mlp.down_proj.weight", "layer 2 K"),
        ("model.layers.2.self_attn.o_proj.weight", "logits"),
        ("lm_head.weight", "logits"),
    ],
)
def test_a_weight_changed_by_one_percent(model, targets, weight, tensor):
    broken = copy.deepcopy(model)
    parameter = broken.get_parameter(weight)
    largest = parameter.abs().argmax()
    parameter.view(-1)[largest] *= 1.01  # a single element
    assert_caught(TorchSession(broken), targets, tensor)


# Cache


class StaleRow(TorchSession):
    """Decoding writes one layer's new Y row over the row before it as well."""

    def _run(self, stage, *args):
        logits, present = super()._run(stage, *args)
        if stage != "decode":
            return logits, present
        k, y = present[2]
        y = y.clone()
        y[:, :, -2] = y[:, :, -1]
        return logits, [*present[:2], (k, y)]


def test_a_cache_row_overwritten_in_decode(model, targets):
    assert_caught(StaleRow(model), targets, "layer 2 Y", position=0, schedule="by token")


# Positions


class ShiftedPositions(TorchSession):
    def _run(self, stage, tokens, *args):
        return super()._run(stage, replace(tokens, positions=tokens.positions + 1), *args)


class ShiftedDecodePositions(TorchSession):
    def _run(self, stage, tokens, *args):
        return super()._run(stage, replace(tokens, positions=tokens.positions + (stage == "decode")), *args)


def test_rope_off_by_one_position(model, targets):
    assert_caught(ShiftedPositions(model), targets, "layer 0 K", position=0)


def test_rope_off_by_one_position_in_decode_only(model, targets):
    assert_caught(ShiftedDecodePositions(model), targets, "layer 0 K", position=1, schedule="by token")


# The operators


def test_the_solve_within_a_chunk_skipped(model, targets, monkeypatch):
    def broken(k, v, k_past, y_past, mask, eps, implementation, training_diagonal):
        if k_past.shape[2] == 0:
            return original(k, v, k_past, y_past, mask, eps, implementation, training_diagonal)
        past, root_d = k_past.shape[2], math.sqrt(k.shape[3])
        k_hat = normalize_keys(torch.cat([k_past, k], dim=2), eps)
        return v - torch.exp(k_hat[:, :, past:] @ k_hat[:, :, :past].mT / root_d - root_d) @ y_past

    original = lucid.precondition
    monkeypatch.setattr(lucid, "precondition", broken)
    # Chunks of 1 and 2: the first row of the second chunk needs no solve, the next one, position 2, does.
    assert_caught(session(model), targets, "layer 0 Y", position=2, schedule="chunks")


def test_the_solve_skipped_altogether(model, targets, monkeypatch):
    monkeypatch.setattr(lucid, "precondition", lambda k, v, *rest: v)
    assert_caught(session(model), targets, "layer 0 Y", position=1)


def test_decode_that_attends_to_key_0_only(model, targets, monkeypatch):
    def broken(q, k_new, v_new, k, y, *rest):
        groups = q.shape[1] // k.shape[1]
        _, y_new = original(q, k_new, v_new, k, y, *rest)
        return y[:, :, :1].repeat_interleave(groups, dim=1).expand(-1, -1, q.shape[2], -1), y_new

    original = lucid.decode_attention
    monkeypatch.setattr(lucid, "decode_attention", broken)
    # The new token's own K and Y of layer 0 do not pass through attention.
    assert_caught(session(model), targets, "layer 1 K", position=1, schedule="by token")


def test_prefill_that_sees_one_token_of_the_future(model, targets, monkeypatch):
    def broken(q, k, y, mask):
        n, total = q.shape[2], k.shape[2]
        age = torch.arange(total - n, total)[:, None] - torch.arange(total)
        return torch.nn.functional.scaled_dot_product_attention(q, k, y, attn_mask=age >= -1, enable_gqa=True)

    monkeypatch.setattr(lucid, "causal_attention", broken)
    assert_caught(session(model), targets, "layer 1 K", position=0)


# Values that are not numbers


class Poisoned(TorchSession):
    """One element of one tensor is ``value``."""

    def __init__(self, model, value, layer, kind, position):
        super().__init__(model)
        self.value, self.where = value, (layer, kind, position)

    def layer_arrays(self, cache):
        arrays = [(k.copy(), y.copy()) for k, y in super().layer_arrays(cache)]
        layer, kind, position = self.where
        arrays[layer][kind][-1, 0, position, 0] = self.value
        return arrays


class PoisonedLogits(TorchSession):
    def _run(self, stage, *args):
        logits, present = super()._run(stage, *args)
        if stage == "decode":
            logits[:, :, 3] = np.nan
        return logits, present


@pytest.mark.parametrize(("value", "kind", "tensor"), [(np.nan, 0, "layer 2 K"), (np.inf, 1, "layer 2 Y")])
def test_a_value_that_is_not_finite_in_the_cache(model, targets, value, kind, tensor):
    candidate = Poisoned(model, value, layer=2, kind=kind, position=20)
    assert_caught(candidate, targets, tensor)


def test_nan_logits(model, targets):
    report = check(PoisonedLogits(model), fed(targets))
    assert not report.passed
    assert str(report.first_failure.tensor) == "logits"
    assert math.isnan(report.first_failure.error)
    assert "NaN" not in str(report.to_dict()["first_failure"])  # JSON has no NaN
    assert any(comparison.logits.disagreed for comparison in report.comparisons if comparison.logits)


# Faults of one way of feeding


class ForgetsInDecoding(TorchSession):
    """Decoding reads a cache whose first key is gone, in one step alone: the last."""

    last = 0

    def _run(self, stage, tokens, layers, keep):
        if stage == "decode" and tokens.positions.max() == self.last:
            layers = [(k.index_fill(2, torch.tensor([0]), 0), y) for k, y in layers]
        return super()._run(stage, tokens, layers, keep)


def test_every_schedule_sees_a_decode_step_that_is_wrong_behind_it(long):
    model, targets = long
    candidate = ForgetsInDecoding(model)
    candidate.last = targets.items[0].scenario.length - 1
    found = check(candidate, targets)
    failed = {item.schedule for item in found.comparisons if item.failed_at is not None}
    assert failed >= {"one-shot", "chunks", "by token", "in turns", "padded"}


class CountsAnswersTwice(TorchSession):
    """A prefill behind tokens that were decoded takes its positions from a wrong count of them."""

    decoded = 0

    def empty_cache(self, batch=1):
        self.decoded = 0
        return super().empty_cache(batch)

    def _run(self, stage, tokens, *args):
        self.decoded += stage == "decode"
        moved = self.decoded if stage == "prefill" else 0
        return super()._run(stage, replace(tokens, positions=tokens.positions + moved), *args)


def test_a_second_turn_that_is_wrong_shows_in_turns_alone(long):
    model, targets = long
    found = check(CountsAnswersTwice(model), targets)
    failed = {item.schedule for item in found.comparisons if item.failed_at is not None}
    assert failed == {"in turns"}


class IgnoresPaddedPast(TorchSession):
    """A prefill behind a past takes the past's padding for tokens."""

    def _run(self, stage, tokens, *args):
        mask = tokens.mask.copy()
        if stage == "prefill":
            mask[:, : tokens.past] = True
        return super()._run(stage, replace(tokens, mask=mask), *args)


class WrongDraftPositions(TorchSession):
    """The step that verifies drafts takes every draft for the first one."""

    def _run(self, stage, tokens, *args):
        if stage == "verify":
            tokens = replace(tokens, positions=np.repeat(tokens.positions[:, :1], tokens.positions.shape[1], axis=1))
        return super()._run(stage, tokens, *args)


class ShiftedDraftLogits(TorchSession):
    """It gives the logits of the token before."""

    def _run(self, stage, *args):
        logits, present = super()._run(stage, *args)
        return np.roll(logits, 1, axis=1) if stage == "verify" else logits, present


class KeepsRejected(TorchSession):
    """Rejected drafts stay in the cache."""

    cuts_freely = True

    def truncate(self, cache, length):
        cache.mask = np.ones_like(cache.mask)


@pytest.mark.parametrize(
    ("candidate", "schedule"),
    [
        (IgnoresPaddedPast, "padded"),
        (WrongDraftPositions, "drafts"),
        (ShiftedDraftLogits, "drafts"),
    ],
)
def test_a_fault_of_one_graph_shows_in_its_schedule_alone(model, targets, candidate, schedule):
    found = check(candidate(model), fed(targets, "chunks", "padded", "drafts"))
    assert {item.schedule for item in found.comparisons if item.failed_at is not None} == {schedule}


def test_rejected_drafts_that_stay_fail_the_run(model, targets):
    with pytest.raises(CheckFailed, match="The cache holds 45 tokens of a row, 43 were fed"):
        check(KeepsRejected(model), fed(targets, "drafts"))
