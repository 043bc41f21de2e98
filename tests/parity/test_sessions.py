"""Sessions against sessions: faithful ones pass, seeded faults fail where they were put."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import lucid_deploy.model.attention.lucid as lucid
from lucid_deploy.parity import check, verify
from lucid_deploy.plugins.shared.keys import normalize_keys
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.parity.small_models import LAYERS, VOCAB, session, small_model

# Faithful candidates


# Faithful candidates

VARIANTS = {
    "lucid": {},
    "no rope": {"use_rope": False},
    "llama": {"attention_type": "llama"},
    "head_dim 68": {"head_dim": 68, "num_key_value_heads": 1, "correlation": 0.995},
    "tied, one head each": {"tie_word_embeddings": True, "num_key_value_heads": 4},
}


CASES = [(name, torch.float32) for name in VARIANTS] + [
    (name, dtype) for name in ("lucid", "no rope") for dtype in (torch.float16, torch.bfloat16)
]


@pytest.mark.parametrize(("variant", "dtype"), CASES)
def test_a_faithful_candidate_passes(variant, dtype):
    """Dense formulas instead of blocked ones: another order of rounding in every operator."""
    changes = VARIANTS[variant]
    model = small_model(max_position_embeddings=48, **changes)
    dense = small_model(max_position_embeddings=48, implementation="reference", **changes)
    candidate = session(dense, dtype)
    report = verify(candidate, session(model, dtype), session(model, torch.float64), steps=8)
    assert report.passed, report.verdict()
    assert report.dtype == str(dtype).removeprefix("torch.")
    assert all(item.logits.disagreed == 0 for item in report.comparisons if item.logits)
    # 4 scenarios in 4 schedules, one in two, K and Y of each layer and the logits, and one free run.
    assert len(report.comparisons) == (4 * 4 + 2) * (2 * LAYERS + 1) + 1


def test_a_faithful_candidate_passes_across_blocks():
    """250 tokens and more: the ends of a block of 128 and of 256, and some behind them."""
    model = small_model()
    report = verify(session(model), session(model), session(model, torch.float64))
    assert report.scenarios[0].prompt_tokens == 250 and report.longest == 282
    assert report.passed, report.verdict()


# Seeded faults


def assert_caught(candidate, targets, tensor, position=None, schedule=None):
    report = check(candidate, targets)
    failure = report.failure
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


def test_two_layers_swapped(model, targets):
    broken = copy.deepcopy(model)
    layers = broken.model.layers
    layers[1], layers[2] = layers[2], layers[1]
    assert_caught(TorchSession(broken), targets, "layer 1 K", position=0)


# Cache


class SwappedCache(TorchSession):
    """Computes the right thing, but hands out K as Y and Y as K."""

    def layer_arrays(self, cache):
        return [(y, k) for k, y in super().layer_arrays(cache)]


class NormalisedKeys(TorchSession):
    """Caches K̂ in place of K."""

    def _run(self, *args, **kwargs):
        logits, present = super()._run(*args, **kwargs)
        return logits, [(normalize_keys(k, self.config.rms_norm_eps), y) for k, y in present]


@pytest.mark.parametrize("kind", [SwappedCache, NormalisedKeys])
def test_wrong_tensors_in_the_cache(model, targets, kind):
    assert_caught(kind(model), targets, "layer 0 K", position=0)


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


# Positions and masks


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


class IgnoredPadding(TorchSession):
    def _run(self, input_ids, mask, positions, layers, decode):
        return super()._run(input_ids, np.ones_like(mask), positions, layers, decode)


def test_padding_ignored(model, targets):
    assert_caught(IgnoredPadding(model), targets, "layer 0 Y", position=0, schedule="padded")


# The operators


def solve(k, v, k_past, y_past, eps, diagonal, skip_solve):
    """The preconditioner, with a chance to get it wrong."""
    n, past, root_d = k.shape[2], k_past.shape[2], math.sqrt(k.shape[3])
    k_hat = normalize_keys(torch.cat([k_past, k], dim=2), eps)
    e = torch.exp(k_hat[:, :, past:] @ k_hat.mT / root_d - root_d)
    rhs = v - e[..., :past] @ y_past
    if skip_solve:
        return rhs
    lower = e[..., past:].tril(-1)
    lower = lower + (torch.eye(n) if diagonal is None else torch.diag_embed(diagonal(e[..., past:])))
    return torch.linalg.solve_triangular(lower, rhs, upper=False)


def test_the_helper_above_is_right_when_nothing_is_broken(model, targets, monkeypatch):
    def right(k, v, k_past, y_past, mask, eps, implementation, training_diagonal):
        if mask is not None:
            return original(k, v, k_past, y_past, mask, eps, implementation, training_diagonal)
        return solve(k, v, k_past, y_past, eps, diagonal=None, skip_solve=False)

    original = lucid.precondition
    monkeypatch.setattr(lucid, "precondition", right)
    assert check(session(model), targets).passed


@pytest.mark.parametrize(
    "diagonal",
    [
        pytest.param(lambda e: torch.full_like(e[..., 0], 0.9998), id="0.9998"),
        pytest.param(lambda e: e.diagonal(dim1=-2, dim2=-1), id="what eps makes of it"),
    ],
)
def test_a_diagonal_that_is_not_one_in_prefill(model, targets, monkeypatch, diagonal):
    def broken(k, v, k_past, y_past, mask, eps, implementation, training_diagonal):
        return solve(k, v, k_past, y_past, eps, diagonal, skip_solve=False)

    monkeypatch.setattr(lucid, "precondition", broken)
    assert_caught(session(model), targets, "layer 0 Y", position=0)


def test_the_solve_within_a_chunk_skipped(model, targets, monkeypatch):
    def broken(k, v, k_past, y_past, mask, eps, implementation, training_diagonal):
        if k_past.shape[2] == 0:
            return original(k, v, k_past, y_past, mask, eps, implementation, training_diagonal)
        return solve(k, v, k_past, y_past, eps, None, skip_solve=True)

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
        return y[:, :, :1].repeat_interleave(groups, dim=1), y_new

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


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("kind", "tensor"), [(0, "layer 2 K"), (1, "layer 2 Y")])
def test_a_value_that_is_not_finite_in_the_cache(model, targets, value, kind, tensor):
    candidate = Poisoned(model, value, layer=2, kind=kind, position=20)
    assert_caught(candidate, targets, tensor)


def test_nan_logits(model, targets):
    report = check(PoisonedLogits(model), targets)
    assert not report.passed
    assert str(report.failure.tensor) == "logits"
    assert math.isnan(report.failure.error)
    assert "NaN" not in str(report.to_dict()["first_failure"])  # JSON has no NaN
    assert any(comparison.logits.disagreed for comparison in report.comparisons if comparison.logits)


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


def test_a_faithful_free_run_agrees_to_the_end(model, targets):
    (run,) = check(session(model), targets).free_runs
    assert (run.scenario, run.tokens, run.agreed) == ("greedy", 8, 8)


def test_a_free_run_that_leaves_the_reference(model, targets):
    scenario = targets.items[-1].scenario
    other = next(token for token in range(VOCAB) if token not in scenario.forced)
    report = check(Favourite(model, len(scenario.prompt), other, 100.0), targets)
    (run,) = report.free_runs
    assert run.agreed == 3
    free = report.comparisons[-1]
    assert (free.schedule, free.logits.disagreed) == ("free-running", 1)
    assert free.failed_at == len(scenario.prompt) + 2
    assert not report.passed


def test_a_free_run_that_leaves_at_a_near_tie_passes(model, targets):
    """The reference is made to hold a tie within the gate; the candidate takes the other token."""
    target = targets.items[-1]
    scenario, logits_id = target.scenario, max(target.reference.tensors)
    rows, step = target.reference.tensors[logits_id], 3
    favoured, other = int(scenario.forced[step]), int(np.argsort(rows.values[0, step])[-2])
    margin = rows.values[0, step, favoured] - rows.values[0, step, other]
    values = rows.values.copy()
    reach = target.gates[logits_id].limit * np.linalg.norm(values[0, step])
    values[0, step, other] += margin - 0.2 * reach
    tied = replace(
        target,
        reference=replace(
            target.reference, tensors={**target.reference.tensors, logits_id: replace(rows, values=values)}
        ),
    )
    candidate = Favourite(model, len(scenario.prompt), other, margin + 0.2 * reach)
    report = check(candidate, replace(targets, items=(tied,)))
    assert report.free_runs[0].agreed == step
    free = report.comparisons[-1].logits
    assert (free.near_ties, free.disagreed) == (1, 0)
    assert report.comparisons[-1].failed_at is None


# Progress


def test_progress_reaches_its_total_and_sessions_are_opened_one_after_the_other(model):
    seen, opened = {}, []

    def opener(name, dtype):
        def open_session():
            opened.append((name, dict(seen)))
            return session(model, dtype)

        return open_session

    def progress(what, done, total):
        assert done == (seen[what][0] + 1 if what in seen else 0)
        seen[what] = (done, total)

    openers = [
        opener("candidate", torch.float32),
        opener("baseline", torch.float32),
        opener("reference", torch.float64),
    ]
    verify(*openers, steps=2, progress=progress)
    assert [name for name, _ in opened] == ["baseline", "reference", "candidate"]
    assert list(seen) == [
        "PyTorch in float32: the gates",
        "PyTorch in float64: the reference",
        "torch in float32: what is verified",
        "Conditioning of the solves",
    ]
    assert all(done == total for done, total in seen.values())


def test_a_real_prompt_is_continued_by_the_reference(model):
    prompt = np.array([5, 9, 2, 9])
    report = verify(session(model), session(model), session(model, torch.float64), steps=6, prompt=prompt)
    assert report.passed
    assert (report.scenarios[-1].name, report.scenarios[-1].prompt_tokens) == ("prompt", 4)
    assert report.free_runs[0].tokens == 6
