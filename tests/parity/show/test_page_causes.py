"""The page's parts about where errors come from."""

from dataclasses import replace

import pytest

from lucid_deploy.parity import check, explain, explained_scenarios
from lucid_deploy.parity.causes.explanation import Explanation
from lucid_deploy.parity.measure.gate import Gate
from lucid_deploy.parity.show.blocks import Figure, FoldedBlocks, Paragraph, Table
from lucid_deploy.parity.show.page_causes import ROWS, STANDARD, sections
from tests.parity.small_models import LAYERS, layers, session


@pytest.fixture(scope="module")
def report(model, targets):
    import torch

    found = explain(
        explained_scenarios(targets)[:1],
        session(model),
        layers(model),
        lambda: layers(model),
        lambda: layers(model, torch.float64),
    )
    return replace(check(session(model), targets), explanation=found)


def test_without_an_explanation_there_is_the_conditioning_alone(report):
    own, shares, heads = sections(replace(report, explanation=None))
    assert own.blocks == shares.blocks == [] and heads.blocks


def test_every_part_has_a_row_and_every_kind_a_chart(report):
    own, shares, _ = sections(report)
    table = own.blocks[-1]
    assert isinstance(table, Table) and len(table.rows) == 3 * LAYERS + 2
    assert len([block for block in own.blocks if isinstance(block, Figure)]) == 3
    assert all(len(row) == len(table.heads) for row in table.rows)
    assert len(shares.blocks[1].rows) == 2 * LAYERS


def test_a_part_that_could_not_be_judged_is_marked(report):
    first = report.explanation.findings[0]
    vacuous, failed = replace(first, gate=Gate(3.0, 1.0)), replace(first, failed=True)
    for item, kind, word in ((vacuous, "unsure", "not judged"), (failed, "bad", "beyond")):
        changed = replace(report.explanation, findings=(item, *report.explanation.findings[1:]))
        cell = sections(replace(report, explanation=changed))[0].blocks[-1].rows[0][6]
        assert (cell.kind, word in cell.text) == (kind, True)


def test_why_layers_could_not_be_run_is_said(report):
    own, shares, _ = sections(replace(report, explanation=Explanation(("x",), unavailable="It is one piece.")))
    assert own.blocks == [Paragraph("It is one piece.")] and shares.blocks == []


def test_standard_attention_is_said_to_have_no_preconditioner(report):
    changed = replace(report, heads=(), explanation=replace(report.explanation, shares=()))
    _, shares, heads = sections(changed)
    assert shares.blocks == heads.blocks == [Paragraph(STANDARD)]


def test_many_heads_are_folded_away(report):
    many = report.heads * ROWS
    blocks = sections(replace(report, heads=many))[2].blocks
    assert len(blocks[1].rows) == ROWS
    assert isinstance(blocks[2], FoldedBlocks) and blocks[2].summary == f"{len(many) - ROWS} more"
