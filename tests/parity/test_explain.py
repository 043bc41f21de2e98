"""Explaining a verification: origins, texts, and what is said where layers cannot be run by themselves."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lucid_deploy.parity.causes import Explanation, explain
from lucid_deploy.parity.compare import check
from lucid_deploy.parity.gate import Gate
from lucid_deploy.parity.own_errors import WorstOwnError
from lucid_deploy.parity.perplexity import cost_on_text, session_logits, surprisals, windows
from lucid_deploy.parity.record import TensorId, no_tick
from lucid_deploy.parity.targets import explained_scenarios
from tests.parity.small_models import LAYERS, VOCAB, in_dtype, layers, session


def explained(model, broken, targets, **options):
    report = check(session(broken), targets)
    failing = None if report.first_failure is None else report.first_failure.scenario
    found = explain(
        explained_scenarios(targets, failing),
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
    assert {item["tensor"] for item in data["error_against_position"]} >= {"layer 0 K", "logits"}


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
        explained_scenarios(targets, report.first_failure.scenario),
        layers(model),
        lambda: layers(model),
        lambda: layers(model, torch.float64),
    )
    report = replace(report, explanation=found)
    assert not report.passed and found.origin is None
    assert "what is passed between calls (the cache, masks, positions) is wrong" in report.cause()


# What it says


def finding(layer, kind, failed=False, gate=1e-3):
    error = 0.5 if failed else 1e-5
    return WorstOwnError("random", TensorId(layer, kind), "decode", 7, error, Gate(gate, gate / 4), failed)


def test_the_origin_is_the_first_part_that_is_wrong_by_itself():
    found = Explanation(("random",), (finding(2, 0, True), finding(1, 1, True), finding(0, 0)), hint="V is wrong.")
    assert str(found.origin.part) == "layer 1 Y"
    sentence = found.sentence(failed=True)
    assert sentence.startswith("The error starts in layer 1 Y") and sentence.endswith("V is wrong.")
    assert found.sentence(failed=False).startswith("The error would start in layer 1 Y")


def test_without_an_origin_the_connections_are_suspected():
    found = Explanation(("random",), (finding(0, 0), finding(0, 1)))
    assert "what is passed between calls" in found.sentence(failed=True)
    assert "could be judged" not in found.sentence(failed=True)
    assert found.sentence(failed=False) == ""
    assert found.sentence(False, unproven=True) == "On the reference's own inputs every layer stays within its gate."


# Perplexity


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
    one_shot = surprisals(layers(model, torch.float64).logits, pieces, no_tick)
    by_session = surprisals(session_logits(session(model)), pieces, no_tick)
    np.testing.assert_allclose(one_shot, wanted, rtol=1e-9)
    np.testing.assert_allclose(by_session, wanted, rtol=1e-3, atol=1e-4)


def test_the_cost_of_a_text_is_that_of_the_plain_formula(model):
    ids = np.random.default_rng(5).integers(VOCAB, size=75)
    broken = copy.deepcopy(model)
    broken.lm_head.weight.mul_(3)
    pieces = windows(ids, limit=48)
    logs = [], []
    for piece in pieces:
        for found, made in zip(logs, (model, broken), strict=True):
            found.append(in_dtype(made, torch.float64)(torch.from_numpy(piece[None]))[0][0, :-1].log_softmax(-1))
    original, worse = map(torch.cat, logs)
    following = torch.from_numpy(np.concatenate([piece[1:] for piece in pieces]))
    cost = cost_on_text(session_logits(session(broken)), layers(model, torch.float64).logits, pieces, no_tick)
    divergence = (original.exp() * (original - worse)).sum(-1).mean()
    assert cost.kl == pytest.approx(float(divergence), rel=1e-3) and cost.kl > 0.1
    assert cost.tokens == 73
    assert cost.original == pytest.approx(math.exp(-original.gather(1, following[:, None]).mean()), rel=1e-6)
    assert cost.same == pytest.approx(float((original.argmax(-1) == worse.argmax(-1)).double().mean()))
