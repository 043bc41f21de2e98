"""What a page is made of."""

from lucid_deploy.parity.show.blocks import Cell, Figure, figure, table
from lucid_deploy.parity.show.svg import Line


def test_texts_become_cells_and_cells_stay():
    made = table("caption", ["a", "b"], [("x", Cell("y", "ok"))], remark="r", texts=2)
    assert made.rows == [[Cell("x"), Cell("y", "ok")]]
    assert (made.caption, made.heads, made.remark, made.texts, made.kind) == ("caption", ["a", "b"], "r", 2, "table")


def test_a_chart_without_anything_to_draw_is_left_out():
    assert figure("x", "title", "described", "x", [Line("nothing", [(0, 0.0)], 0)]) == []


def test_a_chart_has_a_legend_for_every_line():
    (made,) = figure("x", "title", "described", "x", [Line("one", [(0, 1.0)], 0), Line("two", [(0, 2.0)], 1)])
    assert isinstance(made, Figure) and made.chart.startswith("<svg")
    assert made.legend == [("line s0", "one"), ("line s1", "two")]
