"""Suites run what LUCID's authors ran."""

from __future__ import annotations

from typing import Any

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.suites import SUITES, plan


def test_the_published_settings() -> None:
    """As read in the scripts of https://github.com/saisuryadv/LUCID."""
    assert {name: len(plan(name)) for name in SUITES} == {
        "ruler": 12 * 4,
        "mniah": 5 * 4,
        "longbench": 4,
        "scrolls": 2,
        "babilong": 10,
    }
    assert {task.length for task in plan("ruler")} == {2048, 4096, 6144, 8192}
    assert "ruler_qa_hotpot" not in {task.task for task in plan("ruler")}
    assert {(task.task, task.needles) for task in plan("mniah")} == {("niah_multikey_1", n) for n in (2, 4, 6, 8, 10)}
    assert {task.length for task in plan("babilong")} == {"64k"} and SUITES["babilong"].limit == 50


def test_names_tell_tasks_apart() -> None:
    for suite in SUITES:
        names = [task.name for task in plan(suite)]
        assert len(set(names)) == len(names)
    assert plan("mniah", ["4k"], [8])[0].name == "niah_multikey_1_n8_4096"


def test_lengths_and_tasks_can_be_chosen() -> None:
    assert [task.name for task in plan("ruler", ["1k", "500", "1024"], only=["ruler_vt"])] == [
        "ruler_vt_1024",
        "ruler_vt_500",
    ]
    assert [task.name for task in plan("babilong", ["0k"], only=["babilong_qa2"])] == ["babilong_qa2_0k"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("chess",), "Suite 'chess' is not known; known are ruler, mniah, longbench, scrolls, babilong"),
        (("ruler", ["4q"]), "such as 4096 or 4k, not '4q'"),
        (("ruler", ["0"]), "whole number of tokens"),
        (("babilong", ["4096"]), "BABILong has the lengths 0k, 1k"),
        (("longbench", ["4k"]), "leave --lengths out"),
        (("ruler", [], [4]), "--needles is for the suite mniah, not for ruler"),
        (("mniah", [], [41]), "--needles takes 1 to 40, not 41"),
        (("ruler", [], [], ["ruler_qa_hotpot"]), "The suite ruler has no task 'ruler_qa_hotpot'"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(LucidError, match=message):
        plan(*arguments)
