"""Charts: texts are escaped, gaps are left."""

import re

from lucid_deploy.parity.show.svg import Line, classes, log_chart


def test_charts_leave_gaps_where_nothing_can_be_drawn():
    nan, inf = float("nan"), float("inf")
    chart = log_chart("x", "t", "d", "x", [Line("l", list(enumerate([1e-3, nan, 1e-2, 0.0, inf, 1e-1, 1.0])), 0)])
    assert chart.count("M") >= 3 and "nan" not in chart and "inf" not in chart
    assert log_chart("x", "t", "d", "x", [Line("l", [(0, 0.0), (1, nan)], 0)]) == ""
    assert "<svg" in log_chart("x", "t", "d", "x", [Line("l", [(5, 1e-3)], 0)])  # one layer


def test_texts_of_charts_are_escaped():
    chart = log_chart("x", "<t>", "<u>", "<v>", [Line("<w>", [(0, 1.0), (1, 10.0)], 0)])
    assert not re.search("<[tuvw]>", chart)
    for letter in "tuvw":
        assert f"&lt;{letter}&gt;" in chart


def test_a_limit_and_a_broad_line_have_classes_of_their_own():
    assert classes(Line("a", [], 2)) == "line s2"
    assert classes(Line("a", [], 8, reference=True)) == "line s2 limit"
    assert classes(Line("a", [], 0, broad=True)) == "line s0 broad"
