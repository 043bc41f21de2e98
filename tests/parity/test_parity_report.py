"""Reports: plain data, a table that fits a terminal, free runs, progress."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from lucid_deploy.parity import check, verify
from lucid_deploy.parity.measure.compare import TensorId
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.parity.small_models import LAYERS, VOCAB, session


@pytest.fixture(scope="module")
def report(model, targets):
    return check(session(model), targets)


def rendered(report, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(report.render())
    return console.file.getvalue()


class Favourite(TorchSession):
    """From the third decode step of an unpadded run on, prefers one token."""

    def __init__(self, model, prompt_tokens, token, amount):
        super().__init__(model)
        self.start, self.token, self.amount = prompt_tokens + 3, token, amount

    def _run_decode(self, input_ids, mask, positions, layers):
        logits, present = super()._run_decode(input_ids, mask, positions, layers)
        if mask.shape == (1, self.start):
            logits = logits.copy()
            logits[..., self.token] += self.amount
        return logits, present


def test_the_report_is_plain_data(report):
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["passed"] is True
    assert data["first_failure"] is None
    assert data["runtime"] == "torch"
    assert data["environment"]["versions"]["torch"] == torch.__version__
    assert {"lucid-deploy", "python", "numpy"} <= data["environment"]["versions"].keys()
    assert [s["name"] for s in data["scenarios"]] == ["random", "one token", "pattern", "correlated", "greedy"]
    first = data["comparisons"][0]
    assert (first["tensor"], first["layer"], first["schedule"]) == ("layer 0 K", 0, "one-shot")
    assert first["gate"] >= 4 * first["baseline_error"]
    logits = [item for item in data["comparisons"] if item["tensor"] == "logits"]
    assert all(item["logits"]["agreed"] + item["logits"]["near_ties"] == item["logits"]["positions"] for item in logits)


def test_every_metric_is_there_for_every_tensor_and_schedule(report):
    data = report.to_dict()["comparisons"]
    names = [*(f"layer {i} {kind}" for i in range(LAYERS) for kind in "KY"), "logits"]
    for schedule in ("one-shot", "by 7", "chunks", "by token", "padded"):
        found = [item["tensor"] for item in data if (item["scenario"], item["schedule"]) == ("correlated", schedule)]
        assert found == names
    for key in ("max_abs", "relative_l2", "cosine", "worst_position_error", "worst_position"):
        assert all(item[key] is not None for item in data)
    assert all(item["logits"].keys() >= {"kl_mean", "kl_max", "agreed"} for item in data if item["tensor"] == "logits")


def test_the_table_fits_a_terminal(report):
    text = rendered(report)
    assert max(map(len, text.splitlines())) <= 80
    assert "0 K" in text and "2 Y" in text and "logits" in text
    assert "PASSED" in text
    assert "…" not in text


def test_the_table_of_a_deep_model_is_short(report):
    layers = 80
    comparisons = tuple(
        replace(item, tensor=TensorId(layer, item.tensor.kind))
        for item in report.comparisons
        for layer in ([layers] if item.tensor.is_logits else range(item.tensor.layer, layers, LAYERS))
    )
    text = rendered(replace(report, comparisons=comparisons))
    assert len(text.splitlines()) < 50
    assert "0–6 K" in text and "77–79 Y" in text


def test_a_failure_is_named_in_table_and_verdict(model, targets):
    broken = session(model)
    broken._model.model.layers[1].self_attn.v_proj.weight.mul_(1.01)
    report = check(broken, targets)
    text = rendered(report, width=200)
    assert "FAILED layer 1 Y leaves the gate at position 0 (random, one-shot): relative error 0.01, allowed" in text
    data = report.to_dict()
    assert data["passed"] is False
    assert data["first_failure"]["tensor"] == "layer 1 Y"
    assert data["first_failure"]["failed_at"] == 0


def test_an_unproven_tensor_is_no_pass(report):
    unproven = replace(report, unproven=(TensorId(1, 1),))
    assert not unproven.passed
    assert "layer 1 Y" in unproven.verdict()
    assert "FAILED" in rendered(unproven)


def test_a_faithful_free_run_agrees_to_the_end(report):
    (run,) = report.free_runs
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


def test_progress_reaches_its_total_and_sessions_are_opened_one_after_the_other(model):
    seen, opened = {}, []

    def opener(name, dtype):
        def open_session():
            opened.append((name, dict(seen)))
            return session(model, dtype)

        return open_session

    def progress(what, done, total):
        assert done == seen.get(what, (0, total))[0] + 1
        seen[what] = (done, total)

    openers = [
        opener("candidate", torch.float32),
        opener("baseline", torch.float32),
        opener("reference", torch.float64),
    ]
    verify(*openers, steps=2, progress=progress)
    assert [name for name, _ in opened] == ["baseline", "reference", "candidate"]
    assert list(seen) == ["PyTorch float32, greedy", "PyTorch float64", "PyTorch float32", "torch float32"]
    assert all(done == total for done, total in seen.values())


def test_a_real_prompt_is_continued_by_the_reference(model):
    prompt = np.array([5, 9, 2, 9])
    report = verify(session(model), session(model), session(model, torch.float64), steps=6, prompt=prompt)
    assert report.passed
    assert (report.scenarios[-1].name, report.scenarios[-1].prompt_tokens) == ("prompt", 4)
    assert report.free_runs[0].tokens == 6
