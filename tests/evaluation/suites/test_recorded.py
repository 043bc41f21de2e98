"""Documents of recorded data sets are read as published, or refused with their place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.suites import plan
from lucid_deploy.evaluation.suites.recorded import read_documents, source_of

LONGBENCH = plan("longbench", only=["longbench_qasper"])[0]
ROW = {"context": "c", "question": "q", "answers": ["a"], "all_classes": None}


def test_where_documents_are() -> None:
    assert source_of(LONGBENCH).file == "longbench/qasper.jsonl"
    assert source_of(plan("babilong")[0]).file == "babilong/64k/qa1.jsonl"
    assert source_of(plan("scrolls")[1]).file == "scrolls/qmsum/validation.jsonl"


def test_rows_are_read_in_order(data: Path) -> None:
    rows = read_documents(plan("scrolls")[0], data)
    assert [row["id"] for row in rows] == ["a", "a", "b", "c", "d"]


def test_without_network_one_line_says_what_to_fetch(tmp_path: Path) -> None:
    for suite in ("longbench", "babilong", "scrolls"):
        with pytest.raises(LucidError, match=rf"Where there is network, run: python examples/fetch_suites\.py {suite}"):
            read_documents(plan(suite)[0], tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no documents"),
        ("[1]\n", "Line 1 of .* is not a JSON object"),
        ("{", "cannot be read"),
        (json.dumps(ROW) + "\n" + json.dumps({"context": "c"}) + "\n", "Document 2 of .* has no 'question', which lon"),
    ],
)
def test_other_forms_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "longbench").mkdir()
    (tmp_path / "longbench/qasper.jsonl").write_text(content)
    with pytest.raises(LucidError, match=message):
        read_documents(LONGBENCH, tmp_path)
