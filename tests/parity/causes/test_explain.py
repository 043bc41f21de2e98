"""Explaining a verification: origins, texts, and what is said where layers cannot be run by themselves."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lucid_deploy.errors import LucidError
from lucid_deploy.parity import check, explain, explained_scenarios, prepare
from lucid_deploy.runtimes import RuntimeOptions, find_runtime
from lucid_deploy.runtimes.open_layers import open_layers
from tests.parity.small_models import LAYERS, VOCAB, in_dtype, layers, session, small_model


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

        def _run(self, stage, *args):
            logits, present = super()._run(stage, *args)
            if stage != "decode":
                return logits, present
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
    with pytest.raises(LucidError, match=f"{runtime}.* runs a graph as one piece"):
        open_layers(candidate, None)


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
