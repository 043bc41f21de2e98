"""A candidate against its targets: faithful ones pass, seeded faults fail where they were put."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import lucid_deploy.model.attention.lucid as lucid
from lucid_deploy.errors import CheckFailed
from lucid_deploy.model.scenarios import ONE_SHOT, SCHEDULES
from lucid_deploy.parity import check, prepare, verify
from lucid_deploy.parity.options import QUICK
from lucid_deploy.parity.record import TensorId
from lucid_deploy.plugins.shared.keys import normalize_keys
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.parity.small_models import LAYERS, VOCAB, session, small_model

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
    result = verify(session(dense, dtype), session(model, dtype), session(model, torch.float64), steps=8)
    assert result.passed, result.verdict()
    assert result.dtype == str(dtype).removeprefix("torch.")
    assert all(item.logits.disagreed == 0 for item in result.comparisons if item.logits)
    # 4 scenarios in 5 schedules, one in two, K and Y of each layer and the logits, and one free run.
    assert len(result.comparisons) == (4 * 5 + 2) * (2 * LAYERS + 1) + 1
    assert [(run.scenario, run.tokens, run.agreed) for run in result.free_runs] == [("greedy", 8, 8)]


@pytest.fixture(scope="module")
def long():
    """A model and targets of full length, with 20 decode steps: prompts that cross the ends of blocks of 128."""
    model = small_model()
    return model, prepare(session(model), session(model, torch.float64), steps=20)


# Seeded faults


def schedules(*names):
    """Some schedules, one-shot always among them: each takes time."""
    return [schedule for schedule in SCHEDULES if schedule.one_shot or schedule.name in names]


def assert_caught(candidate, targets, tensor, position=None, schedule=None):
    report = check(candidate, targets, schedules=schedules(schedule))
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
    def _run(self, stage, tokens, *args):
        return super()._run(stage, replace(tokens, mask=np.ones_like(tokens.mask)), *args)


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
    assert check(session(model), targets, schedules=schedules("chunks")).passed


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


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("kind", "tensor"), [(0, "layer 2 K"), (1, "layer 2 Y")])
def test_a_value_that_is_not_finite_in_the_cache(model, targets, value, kind, tensor):
    candidate = Poisoned(model, value, layer=2, kind=kind, position=20)
    assert_caught(candidate, targets, tensor)


def test_nan_logits(model, targets):
    report = check(PoisonedLogits(model), targets, schedules=[ONE_SHOT])
    assert not report.passed
    assert str(report.first_failure.tensor) == "logits"
    assert math.isnan(report.first_failure.error)
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


def test_a_free_run_that_leaves_the_reference(model, targets):
    scenario = targets.items[-1].scenario
    other = next(token for token in range(VOCAB) if token not in scenario.forced)
    report = check(Favourite(model, len(scenario.prompt), other, 100.0), targets, schedules=[ONE_SHOT])
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
    report = check(candidate, replace(targets, items=(tied,)), schedules=[ONE_SHOT])
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
    assert check(Nudged(model, targets, 0.5), targets, schedules=[ONE_SHOT]).passed
    report = check(Nudged(model, targets, 2.0), targets, schedules=[ONE_SHOT])
    assert (str(report.first_failure.tensor), report.first_failure.failed_at) == ("layer 1 Y", 20)


def test_what_rounds_beside_the_type_is_noted(model, targets):
    plain, rounding = session(model), session(model)
    rounding.rounded_inputs = "int8"
    found = [check(each, targets, schedules=[ONE_SHOT]) for each in (plain, rounding)]
    assert [(each.rounded_cache, each.rounded_inputs) for each in found] == [(None, None), (None, "int8")]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gates_still_see_a_weight_off_by_ten_percent(model, dtype):
    targets = prepare(session(model, dtype), session(model, torch.float64), steps=8)
    assert check(session(model, dtype), targets, schedules=[ONE_SHOT]).passed
    broken = session(model, dtype)
    broken.model.model.layers[1].self_attn.v_proj.weight.mul_(1.1)
    report = check(broken, targets, schedules=[ONE_SHOT])
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
        check(kind(model), targets, schedules=[ONE_SHOT])


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
    found = check(candidate(model), targets, schedules=schedules("chunks", "padded", "drafts"))
    assert {item.schedule for item in found.comparisons if item.failed_at is not None} == {schedule}


def test_rejected_drafts_that_stay_fail_the_run(model, targets):
    with pytest.raises(CheckFailed, match="The cache holds 45 tokens of a row, 43 were fed"):
        check(KeepsRejected(model), targets, schedules=schedules("drafts"))


class OneByOne(TorchSession):
    multi_token_unsupported_reason = "this runtime decodes one token at a time"


def test_a_runtime_that_verifies_no_drafts_says_so(model, targets):
    result = check(OneByOne(model), targets, schedules=schedules("drafts"))
    assert result.passed and "drafts" not in {item.schedule for item in result.comparisons}
    assert ("verification of drafts", OneByOne.multi_token_unsupported_reason) in [
        (c.name, c.detail) for c in result.checks
    ]
