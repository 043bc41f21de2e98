"""The report on a terminal: it fits, names what failed, and says first how much was judged."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from lucid_deploy.parity import check
from lucid_deploy.parity.causes.localise import Part
from lucid_deploy.parity.measure.compare import TensorId
from lucid_deploy.parity.measure.extent import QUICK
from lucid_deploy.parity.measure.gate import Gate
from lucid_deploy.parity.show.checks import Check, not_done
from lucid_deploy.parity.show.terminal import band_label, check_lines, render
from tests.parity.small_models import LAYERS, session


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
    assert len(text.splitlines()) < 60
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


def test_an_unproven_tensor_is_no_pass(report):
    unproven = replace(report, unproven=(TensorId(1, 1),))
    assert not unproven.passed
    assert "layer 1 Y" in unproven.verdict()
    assert "FAILED" in rendered(unproven)


def test_the_first_line_says_how_much_was_judged_and_against_what(report):
    first = rendered(report, width=200).splitlines()[0]
    assert first == f"Judged {len(report.comparisons)} of {len(report.comparisons)} comparisons against " + (
        "this toolkit's own PyTorch model in float64."
    )


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
    assert text.startswith(f"Judged {total - 4} of {total} comparisons")
    assert "4 comparisons were not judged, since a tensor of zeros would have passed" in text
    assert "The widest gate is that of layer 0 Y (one token" in text and "1.5e+08" in text
    assert f"{total - 4} comparisons in float32" in text and "4 more could not be judged" in text


def test_a_tensor_that_was_never_judged_has_no_share_of_its_gate(report):
    for item in report.scenarios:
        report = vacuous(report, item.name)
    assert "unjudged" in rendered(report) and "PASSED" in rendered(report)  # what is unproven is counted elsewhere


def test_checks_are_named_with_their_outcome_and_the_reason(report):
    made, missing = check_lines(report.checks)
    assert "tensors (passed)" in made and "free generation (reported)" in made
    assert "files, memory, weights: a session was compared, no artifact" in missing
    assert "another implementation" in missing
    assert list(check_lines([Check("files", "passed", "x")])) == ["Checked: files (passed)."]
    assert list(check_lines([not_done("text", "why [not]")]))[-1] == r"Not checked: text: why \[not]."


def test_a_name_with_several_reasons_is_said_once(report):
    """A quick verification leaves four things of a whole one out."""
    left_out = tuple(QUICK.left_out())
    [line] = [each for each in check_lines(replace(report, left_out=left_out).checks) if each.startswith("Not")]
    assert len(left_out) > 3 and line.count("whole verification: ") == 1
    said = line.partition("whole verification: ")[2].partition("; ")[0]
    assert said == " ".join(left_out).rstrip(".")


@pytest.mark.parametrize(
    ("layer", "layers", "label"), [(0, 3, "0 K"), (2, 3, "2 K"), (0, 80, "0–6 K"), (79, 80, "77–79 K")]
)
def test_neighbouring_layers_share_a_row_if_there_are_many(layer, layers, label):
    assert band_label(layer, layers, "K") == label
    assert str(Part(0, 0, 3)) == "layer 0 K"
