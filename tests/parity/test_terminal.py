"""The report on a terminal: it fits, names what failed, and says first how much was judged."""

import io
import re
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from lucid_deploy.parity import check, prepare, words
from lucid_deploy.parity.gate import Gate
from lucid_deploy.parity.options import QUICK
from lucid_deploy.parity.own_errors import Part
from lucid_deploy.parity.record import TensorId
from lucid_deploy.parity.results import Check, FreeRun, not_done
from lucid_deploy.parity.scenarios import ONE_SHOT
from lucid_deploy.parity.terminal import band_label, check_lines, render
from tests.parity.small_models import LAYERS, session, small_model


@pytest.fixture(scope="module")
def report(model, targets):
    return replace(check(session(model), targets), left_out=())  # fewer steps are taken to save time


def rendered(report, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(render(report))
    return console.file.getvalue()


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
    assert len([line for line in text.splitlines() if re.match(r" (\d+(–\d+)? [KY]|logits) ", line)]) == 2 * 12 + 1
    assert len(text.splitlines()) < 65
    assert "0–6 K" in text and "77–79 Y" in text


def test_a_failure_is_named_in_table_and_verdict(model, targets):
    broken = session(model)
    broken.model.model.layers[1].self_attn.v_proj.weight.mul_(1.01)
    report = check(broken, targets)
    text = rendered(report, width=200)
    assert "FAILED layer 1 Y is beyond its gate at position 0 (random, one-shot): relative error 0.01, allowed" in text
    data = report.to_dict()
    assert data["passed"] is False
    assert data["first_failure"]["tensor"] == "layer 1 Y"
    assert data["first_failure"]["failed_at"] == 0


def test_the_verdict_comes_first_and_words_are_explained_before_the_table(report):
    lines = rendered(report, width=400).splitlines()
    total = len(report.comparisons)
    assert lines[0].startswith("PASSED torch computes what PyTorch computes")
    assert lines[1].strip() == (
        f"Judged {total} of {total} comparisons against this toolkit's own PyTorch model in float64."
    )
    assert lines[2].startswith("K: the keys that a layer caches. Y: its preconditioned values, which solve L Y = V")
    assert "Gate: the largest error allowed, 4 times PyTorch's own largest error in float32." in lines[3]
    assert "worst case of each tensor" in lines[4]


def test_standard_attention_caches_v():
    model = small_model(max_position_embeddings=48, attention_type="llama")
    targets = prepare(session(model), session(model, torch.float64), steps=2)
    report = check(session(model), targets, schedules=[ONE_SHOT])
    text = rendered(report, width=400)
    assert "K: the keys that a layer caches. V: its values." in text
    assert "0 V" in text and "Y" not in text.replace("PyTorch", "")
    assert "logits and K and V of every layer" in report.checks[2].detail


def vacuous(report, scenario="one token"):
    """Let one scenario's gates for Y of layer 0 be so wide that they judge nothing."""
    return replace(
        report,
        comparisons=tuple(
            replace(item, gate=Gate(1.5e8, 3.7e7), blind_positions=len(item.errors))
            if item.scenario == scenario and str(item.tensor) == "layer 0 Y"
            else item
            for item in report.comparisons
        ),
    )


def test_what_was_not_judged_is_not_said_to_have_passed(report):
    text = " ".join(rendered(vacuous(report), width=200).split())
    total = len(report.comparisons)
    assert f"Judged {total - 5} of {total} comparisons" in text
    assert "5 comparisons were not judged, since a tensor of zeros would have passed" in text
    assert "The widest gate is that of layer 0 Y (one token" in text and "1.5e+08" in text
    assert f"{total - 5} comparisons in float32" in text and "5 more could not be judged" in text


def test_a_tensor_that_was_never_judged_has_no_share_of_its_gate(report):
    for item in report.scenarios:
        report = vacuous(report, item.name)
    assert "unjudged" in rendered(report) and "NOT PROVEN In float32 PyTorch itself loses layer 0 Y" in rendered(report)


def test_checks_are_named_with_their_outcome_and_the_reason(report):
    made, missing = check_lines(report.checks)
    assert "tensors (passed)" in made and "free generation (reported)" in made
    assert "files, weights: a session was compared, no artifact" in missing
    assert "another implementation" in missing
    assert list(check_lines([Check("files", "passed", "x")])) == ["Checked: files (passed)."]
    assert list(check_lines([not_done("text", "why [not]")]))[-1] == "Not checked: text: why [not]."


def test_a_name_with_several_reasons_is_said_once(report):
    """A quick verification leaves four things of a whole one out."""
    left_out = tuple(QUICK.left_out())
    [line] = [each for each in check_lines(replace(report, left_out=left_out).checks) if each.startswith("Not")]
    assert len(left_out) > 3 and line.count("full verification: ") == 1
    said = line.partition("full verification: ")[2].partition("; ")[0]
    assert said == " ".join(left_out).rstrip(".")


@pytest.mark.parametrize(
    ("layer", "layers", "label"), [(0, 3, "0 K"), (2, 3, "2 K"), (0, 80, "0–6 K"), (79, 80, "77–79 K")]
)
def test_neighbouring_layers_share_a_row_if_there_are_many(layer, layers, label):
    assert band_label(layer, layers, "K") == label
    assert str(Part(0, 0, 3)) == "layer 0 K"


# Sentences


def wide(report, count):
    """Let so many comparisons have a gate that judges nothing."""
    changed = [
        replace(item, gate=Gate(2.0 + index, 0.5), blind_positions=len(item.errors)) if index < count else item
        for index, item in enumerate(report.comparisons)
    ]
    return replace(report, comparisons=tuple(changed))


def test_a_verdict_counts_only_what_was_judged(report):
    total = len(report.comparisons)
    assert f"{total} comparisons in float32" in words.verdict(report) and "not be judged" not in words.verdict(report)
    assert f"{total - 2} comparisons in float32" in words.verdict(wide(report, 2))
    assert words.verdict(wide(report, 2)).endswith("of its gate; 2 more could not be judged.")
    worst = max(item.severity for item in report.comparisons[2:])
    assert f"the worst error is {worst:.2f} of its gate" in words.verdict(wide(report, 2))


def test_a_free_run_is_a_sentence():
    assert words.free_run_line(FreeRun("greedy", 8, 8)) == "Generating freely (greedy): all 8 tokens are PyTorch's."
    assert "3 of 8 tokens are PyTorch's before the first other one" in words.free_run_line(FreeRun("x", 8, 3))


def test_advice_follows_a_failure_only(report):
    assert words.advice(report) == ""
    failed = replace(report, comparisons=(replace(report.comparisons[0], failed_at=3), *report.comparisons[1:]))
    assert "torch ran the artifact's weights without its graphs" in words.advice(failed)
    assert "--kernels functions" in words.advice(
        replace(failed, runtime="onnxruntime", runs_graphs=True, fallback_hint="try --kernels functions")
    )
