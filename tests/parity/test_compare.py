"""A candidate against its targets: what is compared, where the gate is, and what each schedule feeds."""

import numpy as np
import pytest
import torch

from lucid_deploy.errors import CheckFailed
from lucid_deploy.parity.compare import check
from lucid_deploy.parity.record import TensorId
from lucid_deploy.parity.scenarios import QUICK, Workload
from lucid_deploy.parity.targets import prepare
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.parity.small_models import LAYERS, VOCAB, fed, session, small_model

CASES = {
    "lucid": ({}, torch.float32),
    "no rope": ({"use_rope": False}, torch.float32),
    "llama": ({"attention_type": "llama"}, torch.float32),
    "head_dim 68": ({"head_dim": 68, "num_key_value_heads": 1, "correlation": 0.995}, torch.float32),
    "lucid in float16": ({}, torch.float16),
    "no rope in bfloat16": ({"use_rope": False}, torch.bfloat16),
}


@pytest.mark.parametrize(("changes", "dtype"), CASES.values(), ids=CASES)
def test_a_faithful_candidate_passes(changes, dtype):
    """Dense formulas instead of blocked ones: another order of rounding in every operator."""
    model = small_model(max_position_embeddings=48, **changes)
    dense = small_model(max_position_embeddings=48, implementation="reference", **changes)
    targets = prepare(session(model, dtype), session(model, torch.float64), workload=Workload(steps=8))
    result = check(session(dense, dtype), targets)
    assert result.passed, result.verdict()
    assert result.dtype == str(dtype).removeprefix("torch.")
    assert all(item.logits.disagreed == 0 for item in result.comparisons if item.logits)
    # 4 scenarios in 5 schedules, one in two, K and Y of each layer and the logits, and one free run.
    assert len(result.comparisons) == (4 * 5 + 2) * (2 * LAYERS + 1) + 1
    assert [(run.scenario, run.tokens, run.agreed) for run in result.free_runs] == [("greedy", 8, 8)]


# Free runs


class Favourite(TorchSession):
    """From the third decode step of an unpadded run on, prefers one token."""

    def __init__(self, model, prompt_tokens, token, amount):
        super().__init__(model)
        self.start, self.token, self.amount = prompt_tokens + 3, token, amount

    def _run(self, stage, tokens, *args):
        logits, present = super()._run(stage, tokens, *args)
        if stage == "decode" and tokens.mask.shape == (1, self.start):
            logits = logits.copy()
            logits[..., self.token] += self.amount
        return logits, present


def test_a_free_run_that_leaves_the_reference(model, targets):
    scenario = targets.items[-1].scenario
    other = next(token for token in range(VOCAB) if token not in scenario.forced)
    report = check(Favourite(model, len(scenario.prompt), other, 100.0), fed(targets))
    (run,) = report.free_runs
    assert run.agreed == 3
    free = report.comparisons[-1]
    assert (free.schedule, free.logits.disagreed) == ("free-running", 1)
    assert free.failed_at == len(scenario.prompt) + 2
    assert not report.passed


# Progress


def test_a_real_prompt_is_continued_by_the_reference(model):
    prompt = np.array([5, 9, 2, 9])
    targets = prepare(session(model), session(model, torch.float64), workload=Workload(steps=6), prompt=prompt)
    report = check(session(model), targets)
    assert report.passed
    assert (report.scenarios[-1].name, report.scenarios[-1].prompt_tokens) == ("prompt", 4)
    assert report.free_runs[0].tokens == 6


# Where the gate is, and what each schedule sees


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
    assert check(Nudged(model, targets, 0.5), fed(targets)).passed
    report = check(Nudged(model, targets, 2.0), fed(targets))
    assert (str(report.first_failure.tensor), report.first_failure.failed_at) == ("layer 1 Y", 20)


def test_half_precision_gates_still_see_a_weight_off_by_ten_percent(model):
    dtype = torch.bfloat16  # the coarser one
    targets = prepare(session(model, dtype), session(model, torch.float64), workload=Workload(steps=8))
    assert check(session(model, dtype), fed(targets)).passed
    broken = session(model, dtype)
    broken.model.model.layers[1].self_attn.v_proj.weight.mul_(1.1)
    report = check(broken, fed(targets))
    assert str(report.first_failure.tensor) == "layer 1 Y"


def test_the_candidate_must_be_of_the_targets_precision(model, targets):
    with pytest.raises(ValueError, match="bfloat16"):
        check(session(model, torch.bfloat16), targets)


class WrongShape(TorchSession):
    def layer_arrays(self, cache):
        return [(k[:, :, 1:], y) for k, y in super().layer_arrays(cache)]


class MissingLayer(TorchSession):
    def layer_arrays(self, cache):
        return super().layer_arrays(cache)[:-1]


@pytest.mark.parametrize(("kind", "message"), [(WrongShape, "layer 0 K has shape"), (MissingLayer, "2 layers")])
def test_tensors_of_wrong_shape_fail_with_a_message(model, targets, kind, message):
    with pytest.raises(CheckFailed, match=message):
        check(kind(model), fed(targets))


def test_a_quick_run_feeds_what_its_workload_says():
    model = small_model()
    targets = prepare(session(model), session(model, torch.float64), workload=QUICK)
    found = check(session(model), targets)
    assert found.passed
    assert [(s.name, s.prompt_tokens, s.decode_steps) for s in found.scenarios] == [
        ("one token", 250, 8),
        ("correlated", 250, 8),
        ("greedy", 250, 8),
    ]
    assert {item.schedule for item in found.comparisons} == {"one-shot", "chunks", "padded", "drafts", "free-running"}
    assert found.left_out == tuple(QUICK.left_out())
    assert found.context == 512


def test_behind_pieces_fewer_steps_are_decoded_and_all_positions_are_cached(long):
    """K and Y are compared at every position, logits from the last token that was prefilled."""
    model, targets = long
    found = check(session(model), targets)
    assert found.passed
    prompt, total = found.scenarios[0].prompt_tokens, 282 - 12
    assert total == prompt + 20
    for item in found.comparisons:
        few = item.schedule in ("chunks", "in turns", "padded", "drafts")
        few = few or (item.schedule == "one-shot" and item.scenario != "greedy")
        first = total - 8 - 1 if few else prompt - 1
        assert item.start == (first if item.tensor.is_logits else 0)
        assert item.start + len(item.errors) == total or item.schedule == "free-running"
