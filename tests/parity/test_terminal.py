"""The report on a terminal: it fits, names what failed, and says first how much was judged."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from lucid_deploy.parity.compare import check
from lucid_deploy.parity.terminal import render
from tests.parity.small_models import session


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
