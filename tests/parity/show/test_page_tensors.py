"""The page's parts about what was compared."""

from dataclasses import replace

import pytest

from lucid_deploy.parity import check
from lucid_deploy.parity.measure.compare import TensorId
from lucid_deploy.parity.measure.gate import Gate
from lucid_deploy.parity.measure.metrics import Divergence
from lucid_deploy.parity.show.blocks import Cell, FoldedBlocks, Table
from lucid_deploy.parity.show.page_tensors import LINES, ROWS, details, sections
from tests.parity.small_models import LAYERS, session


@pytest.fixture(scope="module")
def report(model, targets):
    return check(session(model), targets)


def test_every_tensor_has_a_row(report):
    (table,) = sections(report)[0].blocks
    names = [*(f"layer {i} {kind}" for i in range(LAYERS) for kind in "KY"), "logits"]
    assert [row[0].text for row in table.rows] == names
    assert all(len(row) == len(table.heads) for row in table.rows)
    assert all(row[7].kind == "ok" for row in table.rows)


def test_outcomes_have_styles_of_their_own(report):
    failed = replace(report.comparisons[0], failed_at=0)
    vacuous = replace(report.comparisons[1], gate=Gate(5.0, 1.0), blind_positions=len(report.comparisons[1].errors))
    (folded,) = details(replace(report, comparisons=(failed, vacuous, *report.comparisons[2:])))[1].blocks
    assert isinstance(folded, FoldedBlocks)
    table = folded.blocks[0]
    assert isinstance(table, Table)
    assert [row[-1].kind for row in table.rows[:3]] == ["bad", "unsure", "ok"]
    assert table.rows[1][-1].text == "not judged"


def test_a_deep_model_has_few_lines_in_a_chart(report):
    layers = 40
    comparisons = tuple(
        replace(item, tensor=TensorId(layer, item.tensor.kind))
        for item in report.comparisons
        for layer in ([layers] if item.tensor.is_logits else range(item.tensor.layer, layers, LAYERS))
    )
    for chart in sections(replace(report, comparisons=comparisons))[1].blocks:
        named = [name for _, name in chart.legend if "gate" not in name and "widest" not in name]
        assert 1 <= len(named) <= LINES


def test_many_other_tokens_are_folded_away(report):
    found = tuple(Divergence(position, 1, 2, 0.5, 1.0, True) for position in range(ROWS + 5))
    comparisons = tuple(
        replace(item, logits=replace(item.logits, divergences=found))
        if item.logits is not None and (item.scenario, item.schedule) == ("random", "chunks")
        else item
        for item in report.comparisons
    )
    blocks = details(replace(report, comparisons=comparisons))[0].blocks
    table, rest = [block for block in blocks if isinstance(block, Table | FoldedBlocks)]
    assert len(table.rows) == ROWS and rest.summary == "5 more"
    assert table.rows[0][-1] == Cell("near-tie", "ok")
