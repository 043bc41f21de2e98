"""A candidate against its targets: the gate is where it says, and what cannot be compared is said so."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lucid_deploy.errors import CheckFailed
from lucid_deploy.model.scenarios import ONE_SHOT
from lucid_deploy.parity.measure.candidate import measure
from lucid_deploy.parity.measure.compare import TensorId
from lucid_deploy.parity.measure.derive_targets import prepare
from lucid_deploy.parity.measure.extent import QUICK
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.parity.small_models import session, small_model


class Nudged(TorchSession):
    """One row of one layer's Y is off by a share of its gate."""

    def __init__(self, model, targets, share):
        super().__init__(model)
        self.size = share * min(target.gates[TensorId(1, 1)].limit for target in targets.items)

    def layer_arrays(self, cache):
        arrays = super().layer_arrays(cache)
        y = arrays[1][1].astype(np.float64)  # so that the nudge is not rounded away
        norms = np.linalg.norm(y, axis=(1, 3), keepdims=True)  # (B, 1, T, 1)
        scale = np.maximum.accumulate(np.nan_to_num(norms), axis=2)[:, :, 20]
        y[:, 0, 20, 0] += self.size * scale[:, 0, 0]
        arrays[1] = (arrays[1][0], y)
        return arrays


def test_the_gate_is_where_it_says(model, targets):
    """A nudge of half the narrowest gate passes, one of twice the narrowest gate does not, in that scenario."""
    assert measure(Nudged(model, targets, 0.5), targets, schedules=[ONE_SHOT]).passed
    report = measure(Nudged(model, targets, 2.0), targets, schedules=[ONE_SHOT])
    assert (str(report.failure.tensor), report.failure.failed_at) == ("layer 1 Y", 20)


def test_what_rounds_beside_the_type_is_noted(model, targets):
    plain, rounding = session(model), session(model)
    rounding.rounded_inputs = "int8"
    found = [measure(each, targets, schedules=[ONE_SHOT]) for each in (plain, rounding)]
    assert [(each.rounded_cache, each.rounded_inputs) for each in found] == [(None, None), (None, "int8")]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gates_still_see_a_weight_off_by_ten_percent(model, dtype):
    targets = prepare(session(model, dtype), session(model, torch.float64), steps=8)
    assert measure(session(model, dtype), targets, schedules=[ONE_SHOT]).passed
    broken = session(model, dtype)
    broken.model.model.layers[1].self_attn.v_proj.weight.mul_(1.1)
    report = measure(broken, targets, schedules=[ONE_SHOT])
    assert str(report.failure.tensor) == "layer 1 Y"


def test_the_candidate_must_be_of_the_targets_precision(model, targets):
    with pytest.raises(ValueError, match="bfloat16"):
        measure(session(model, torch.bfloat16), targets)


class WrongShape(TorchSession):
    def layer_arrays(self, cache):
        return [(k[:, :, 1:], y) for k, y in super().layer_arrays(cache)]


class MissingLayer(TorchSession):
    def layer_arrays(self, cache):
        return super().layer_arrays(cache)[:-1]


@pytest.mark.parametrize(("kind", "message"), [(WrongShape, "layer 0 K has shape"), (MissingLayer, "2 layers")])
def test_tensors_of_wrong_shape_fail_with_a_message(model, targets, kind, message):
    with pytest.raises(CheckFailed, match=message):
        measure(kind(model), targets)


def test_a_quick_measurement_runs_what_its_extent_says():
    model = small_model()
    targets = prepare(session(model), session(model, torch.float64), extent=QUICK)
    found = measure(session(model), targets)
    assert found.passed
    assert [(s.name, s.prompt_tokens, s.decode_steps) for s in found.scenarios] == [
        ("one token", 140, 8),
        ("correlated", 140, 8),
        ("greedy", 140, 8),
    ]
    assert {item.schedule for item in found.comparisons} == {"one-shot", "chunks", "padded", "free-running"}
    assert found.left_out == tuple(QUICK.left_out())
    assert (found.context, found.longest) == (512, 148)


def test_behind_pieces_fewer_steps_are_decoded_and_all_positions_are_cached():
    """K and Y are compared at every position, logits from the last token that was prefilled."""
    model = small_model()
    targets = prepare(session(model), session(model, torch.float64), steps=20)
    found = measure(session(model), targets)
    assert found.passed
    prompt, total = found.scenarios[0].prompt_tokens, found.longest
    assert total == prompt + 20
    for item in found.comparisons:
        few = item.schedule in ("chunks", "in turns", "padded")
        few = few or (item.schedule == "one-shot" and item.scenario != "greedy")
        first = total - 8 - 1 if few else prompt - 1
        assert item.start == (first if item.tensor.is_logits else 0)
        assert item.start + len(item.errors) == total or item.schedule == "free-running"


class ForgetsInDecoding(TorchSession):
    """Decoding reads a cache whose first key is gone, in one step alone: the last."""

    last = 0

    def _run(self, stage, tokens, layers, keep):
        if stage == "decode" and tokens.positions.max() == self.last:
            layers = [(k.index_fill(2, torch.tensor([0]), 0), y) for k, y in layers]
        return super()._run(stage, tokens, layers, keep)


def test_every_way_of_feeding_sees_a_step_that_is_wrong_behind_it():
    model = small_model()
    targets = prepare(session(model), session(model, torch.float64), steps=20)
    candidate = ForgetsInDecoding(model)
    candidate.last = targets.items[0].scenario.length - 1
    found = measure(candidate, targets)
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


def test_a_second_turn_that_is_wrong_shows_in_turns_alone():
    model = small_model()
    targets = prepare(session(model), session(model, torch.float64), steps=20)
    found = measure(CountsAnswersTwice(model), targets)
    failed = {item.schedule for item in found.comparisons if item.failed_at is not None}
    assert failed == {"in turns"}
