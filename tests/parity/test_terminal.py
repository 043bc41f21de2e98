"""The report on a terminal: it fits, names what failed, and says first how much was judged."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from lucid_deploy.parity import check
from lucid_deploy.parity.record import TensorId
from lucid_deploy.parity.terminal import render
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


# Sentences
