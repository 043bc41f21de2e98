"""Own and inherited errors, perplexities and hand-set gates, with sessions of small PyTorch models."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lucid_deploy.errors import LucidError
from lucid_deploy.parity import check, explain, explained_scenarios, prepare
from lucid_deploy.parity.causes.localise import Part, look_inside, own_errors, own_gates, parts_of, splits
from lucid_deploy.parity.measure.metrics import logit_metrics
from lucid_deploy.parity.measure.perplexity import perplexity, session_logits, surprisals, windows
from lucid_deploy.runtimes import RuntimeOptions, find_runtime
from lucid_deploy.runtimes.layers import Tokens
from lucid_deploy.runtimes.open_layers import open_layers
from lucid_deploy.runtimes.torch.layers import TorchLayers
from tests.parity.small_models import LAYERS, VOCAB, in_dtype, session, small_model


def layers(model, dtype=torch.float32):
    return TorchLayers(in_dtype(model, dtype))


def nothing():
    pass


@pytest.fixture(scope="module")
def deep(model, targets):
    target = explained_scenarios(targets)[0]
    return look_inside(layers(model, torch.float64), target.scenario, target.reference)


def explained(model, broken, targets, **options):
    report = check(session(broken), targets)
    failing = None if report.failure is None else report.failure.scenario
    found = explain(
        explained_scenarios(targets, failing),
        session(broken),
        layers(broken),
        lambda: layers(model),
        lambda: layers(model, torch.float64),
        **options,
    )
    return replace(report, explanation=found)


def test_the_insides_are_what_sessions_record(targets, deep):
    target = explained_scenarios(targets)[0]
    for tensor, rows in target.reference.tensors.items():
        if not tensor.is_logits:
            inside = parts_of(deep.states)[Part(tensor.layer, tensor.kind, LAYERS)]
            np.testing.assert_allclose(inside, rows.values, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(deep.states.logits[:, 0], deep.logits[:, -1], rtol=1e-8, atol=1e-9)


def test_the_reference_has_no_own_error(model, deep):
    for feedings in own_errors(layers(model, torch.float64), deep, nothing).values():
        assert set(feedings) == {"one prefill", "prefill after a past", "padded prefill", "decode"}
        assert max(errors.max() for _, errors in feedings.values()) < 1e-11


def test_own_and_inherited_add_up(model, deep):
    broken = copy.deepcopy(model)
    broken.model.layers[0].mlp.down_proj.weight.mul_(1.05)
    candidate = layers(broken)
    tokens = Tokens.after(deep.ids)
    full = candidate.run(tokens, candidate.empty_past())
    given = candidate.run(tokens, candidate.empty_past(), deep.residuals(slice(None)))
    found = {str(item.part): item for item in splits(full, given, deep)}
    assert found["layer 0 output"].own > 1e-3 > 1e-5 > found["layer 0 output"].inherited
    for name in ("layer 1 K", "layer 2 Y", "logits"):
        assert found[name].inherited > 1e-4 > 1e-5 > found[name].own
        assert found[name].total == pytest.approx(found[name].inherited, rel=1e-2)


def test_a_sound_model_has_no_origin(model, targets):
    report = explained(model, model, targets)
    assert report.passed and report.explanation.origin is None and report.cause() == ""
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert len(data["explanation"]["own_errors"]) == 2 * (3 * LAYERS + 2)  # correlated and greedy
    assert len(data["explanation"]["error_shares"]) == 2 * LAYERS
    assert len(data["heads"]) == 2 * LAYERS * 2
    assert {item["tensor"] for item in data["error_against_position"]} >= {"layer 0 K", "logits"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_no_origin_either(model, dtype):
    targets = prepare(session(model, dtype), session(model, torch.float64), steps=8)
    found = explain(
        explained_scenarios(targets)[:1],
        session(model, dtype),
        layers(model, dtype),
        lambda: layers(model, dtype),
        lambda: layers(model, torch.float64),
    )
    assert found.origin is None
    assert all(item.excess < 4 for item in found.shares)


def test_nan_is_an_own_error(model, targets):
    broken = copy.deepcopy(model)
    broken.model.layers[1].self_attn.v_proj.weight[0, 0] = math.nan
    report = explained(model, broken, targets)
    assert str(report.explanation.origin.part) == "layer 1 Y"
    assert "NaN" in report.explanation.hint
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_fault_between_the_layers_is_said_to_be_there(model, targets):
    class Forgetful(type(session(model))):
        """Loses a row of the cache between the calls."""

        def _run_decode(self, *args):
            logits, present = super()._run_decode(*args)
            k, y = present[0]
            y = y.clone()
            y[:, :, 0] = 0
            return logits, [(k, y), *present[1:]]

    report = check(Forgetful(in_dtype(model, torch.float32)), targets)
    found = explain(
        explained_scenarios(targets, report.failure.scenario),
        session(model),
        layers(model),
        lambda: layers(model),
        lambda: layers(model, torch.float64),
    )
    report = replace(report, explanation=found)
    assert not report.passed and found.origin is None
    assert "what connects calls (the cache, masks, positions) is wrong" in report.cause()


def test_layers_that_cannot_be_run_are_said_to_be_so(model, targets):
    broken = copy.deepcopy(model)
    broken.lm_head.weight.mul_(1.01)
    report = check(session(broken), targets)
    opened = []
    found = explain(
        explained_scenarios(targets), session(broken), None, opened.append, opened.append, unavailable="One piece."
    )
    assert not opened  # nothing was loaded for it
    assert replace(report, explanation=found).cause() == "One piece."


@pytest.mark.parametrize(("runtime", "provider"), [("tensorrt", "cpu"), ("onnxruntime", "nv-tensorrt-rtx")])
def test_runtimes_of_whole_graphs_say_that_they_are(model, runtime, provider):
    candidate = session(model)
    candidate.runtime = runtime
    candidate.capabilities = find_runtime(runtime).capabilities(RuntimeOptions(runtime, provider=provider))
    with pytest.raises(LucidError, match=f"{runtime}.* runs a graph as one piece.* --runtime torch or onnxruntime"):
        open_layers(candidate, None)


def test_own_gates_are_derived_or_set(model, deep):
    own = own_errors(layers(model), deep, nothing)
    for part, gate in own_gates(own, "float32").items():
        worst = max(errors.max() for _, errors in own[part].values())
        assert gate.limit == max(4 * worst, 2 * 2.0**-23)
    assert {gate.limit for gate in own_gates(own, "float32", tolerance=0.1).values()} == {0.1}


# A tolerance set by hand


def test_a_tolerance_replaces_the_gates_and_is_said_first(model, targets):
    broken = copy.deepcopy(model)
    broken.lm_head.weight.mul_(1.01)
    report = check(session(broken), targets.with_tolerance(0.05))
    assert report.passed and not report.within_derived
    assert report.verdict().startswith("The tolerance of 0.05 was set by hand; the gates derived from PyTorch did not")
    assert "by them it would have failed" in report.verdict()
    assert report.to_dict()["gate"]["tolerance"] == 0.05 and report.to_dict()["gate"]["within_derived"] is False
    assert not check(session(broken), targets.with_tolerance(0.005)).passed
    sound = check(session(model), targets.with_tolerance(0.05))
    assert sound.within_derived and "they would have held" in sound.verdict()


@pytest.mark.parametrize("tolerance", [0, -1, 1, 1.5, math.nan, math.inf])
def test_impossible_tolerances(targets, tolerance):
    with pytest.raises(LucidError, match="above 0 and below 1"):
        targets.with_tolerance(tolerance)


# Tokens


def test_divergences_are_listed_and_classed():
    reference = np.array([[[2.0, 1.0, 0.0], [1.0, 1.001, 0.0], [0.0, 0.0, 5.0]]])
    actual = np.array([[[1.0, 2.0, 0.0], [1.002, 1.001, 0.0], [0.0, 0.0, 5.0]]])
    found = logit_metrics(actual, reference, gate=0.01, start=7)
    assert [(d.position, d.wanted, d.chosen, d.near_tie) for d in found.divergences] == [
        (7, 0, 1, False),
        (8, 1, 0, True),
    ]
    first, second = found.divergences
    assert first.margin == pytest.approx(1) and first.allowed == pytest.approx(math.sqrt(2) * 0.01 * math.sqrt(5))
    assert second.margin == pytest.approx(0.001) and second.margin <= second.allowed
    assert (found.agreed, found.near_ties, found.disagreed) == (1, 1, 1)


# Text


def test_perplexity_is_that_of_the_plain_formula(model):
    ids = np.random.default_rng(5).integers(VOCAB, size=75)
    pieces = windows(ids, limit=48)
    assert [len(piece) for piece in pieces] == [48, 27]
    scores = []
    for piece in pieces:
        logits, _ = in_dtype(model, torch.float64)(torch.from_numpy(piece[None]))
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], torch.from_numpy(piece[1:]), reduction="none")
        scores.append(loss.detach().numpy())
    wanted = np.concatenate(scores)
    one_shot = surprisals(layers(model, torch.float64).logits, pieces, nothing)
    by_session = surprisals(session_logits(session(model)), pieces, nothing)
    np.testing.assert_allclose(one_shot, wanted, rtol=1e-9)
    np.testing.assert_allclose(by_session, wanted, rtol=1e-3, atol=1e-4)
    found = perplexity(wanted, wanted, by_session, 48)
    assert found.tokens == 73 and found.reference == pytest.approx(math.exp(wanted.mean()))
    assert abs(found.difference) < 1e-2 * found.reference


@pytest.mark.parametrize("tokens", [0, 1])
def test_a_text_too_short_for_a_perplexity(tokens):
    with pytest.raises(LucidError, match=f"{tokens} tokens"):
        windows(np.zeros(tokens, dtype=np.int64), 48)


def test_a_worse_model_is_more_perplexed(model, targets):
    text = np.random.default_rng(5).integers(VOCAB, size=60)
    broken = copy.deepcopy(model)
    broken.lm_head.weight.mul_(3)
    found = explained(model, broken, targets, text=text).explanation.perplexity
    assert found.tokens == 58  # 48 and 12 tokens
    assert found.difference > 1 > abs(found.baseline - found.reference)


def test_a_model_with_standard_attention():
    model = small_model(max_position_embeddings=48, attention_type="llama")
    targets = prepare(session(model), session(model, torch.float64), steps=8)
    report = explained(model, model, targets)
    assert report.heads == () and report.explanation.shares == () and report.explanation.origin is None
