"""Suites run what LUCID's authors ran, on documents from a directory; nothing here needs lm_eval."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.suites import SUITES, plan
from lucid_deploy.evaluation.suites.documents import open_haystack, read_documents, source_of

LONGBENCH = plan("longbench", only=["longbench_qasper"])[0]
ROW = {"context": "c", "question": "q", "answers": ["a"], "all_classes": None}


def test_the_published_settings() -> None:
    """As read in the scripts of https://github.com/saisuryadv/LUCID."""
    counts = {"ruler": 12 * 4, "mniah": 5 * 4, "longbench": 4, "scrolls": 2, "babilong": 10}
    assert {name: len(plan(name)) for name in SUITES} == counts
    assert {name: len({task.name for task in plan(name)}) for name in SUITES} == counts
    assert {task.length for task in plan("ruler")} == {2048, 4096, 6144, 8192}
    assert {(task.task, task.needles) for task in plan("mniah")} == {("niah_multikey_1", n) for n in (2, 4, 6, 8, 10)}
    assert {task.length for task in plan("babilong")} == {"64k"} and SUITES["babilong"].limit == 50


def test_lengths_and_tasks_can_be_chosen() -> None:
    chosen = plan("ruler", [1024, 500], only=["ruler_vt"])
    assert [task.name for task in chosen] == ["ruler_vt_1024", "ruler_vt_500"]
    assert [task.name for task in plan("babilong", [0], only=["babilong_qa2"])] == ["babilong_qa2_0k"]
    assert plan("mniah", [4096], [8])[0].name == "niah_multikey_1_n8_4096"


def test_documents_are_read_in_order(data: Path) -> None:
    assert [row["id"] for row in read_documents(plan("scrolls")[0], data)] == ["a", "a", "b", "c", "d"]
    assert source_of(plan("babilong")[0]).file == "babilong/64k/qa1.jsonl"


def test_missing_data_name_the_script_that_fetches_them(tmp_path: Path) -> None:
    for suite in ("longbench", "babilong", "scrolls"):
        with pytest.raises(LucidError, match=rf"Where there is network, run: python examples/fetch_suites\.py {suite}"):
            read_documents(plan(suite)[0], tmp_path)
    with pytest.raises(LucidError, match=r"neither at essays/\*\.txt .* python examples/fetch_suites\.py ruler"):
        open_haystack("essays", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no documents"),
        ("[1]\n", "Document 1 of .* is not a JSON object"),
        ("{", "cannot be read"),
        (json.dumps(ROW) + "\n" + json.dumps({"context": "c"}) + "\n", "Document 2 of .* has no 'question', which lon"),
    ],
)
def test_other_forms_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "longbench").mkdir()
    (tmp_path / "longbench/qasper.jsonl").write_text(content)
    with pytest.raises(LucidError, match=message):
        read_documents(LONGBENCH, tmp_path)


def test_texts_to_hide_needles_in(tmp_path: Path) -> None:
    bundled = " ".join(open_haystack("bundled", None).words)
    assert len(bundled) > 4000 and bundled.isascii()
    path = tmp_path / "own.txt"
    path.write_text("One\n\n two.  Three", encoding="utf-8-sig")  # as Windows' programs do
    found = open_haystack(str(path), None)
    assert found.words == ("One", "two.", "Three") and found.to_dict()["source"] == "own.txt"
    assert found.at_least(4) == [*found.words, *found.words]
    (tmp_path / "essays").mkdir()
    for name, text in (("b", "second"), ("a", "first")):
        (tmp_path / f"essays/{name}.txt").write_text(text)
    assert open_haystack("essays", tmp_path).words == ("first", "second")
    path.write_text(" \n")
    for source, message in ((path, "has no words"), (tmp_path / "nowhere.txt", "cannot be read")):
        with pytest.raises(LucidError, match=message):
            open_haystack(str(source), None)
