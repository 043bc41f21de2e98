"""RULER's documents: each task alone, the same whatever was made before; what cannot be made is refused."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.suites import plan
from lucid_deploy.evaluation.suites.haystack import open_haystack

pytest.importorskip("lm_eval")
from lucid_deploy.evaluation.suites.ruler import Generators, import_generators


def generators(tokenizer: TextTokenizer, data: Path | None = None, seed: int = 0) -> Generators:
    return Generators(tokenizer, open_haystack("bundled", None), data, seed)


def test_documents_depend_on_nothing_that_came_before(llama_tokenizer: TextTokenizer, data: Path) -> None:
    for name in ("niah_multiquery", "ruler_cwe", "ruler_qa_squad", "ruler_vt", "ruler_fwe"):
        (task,) = plan("ruler", ["1536"], only=[name])
        first = generators(llama_tokenizer, data).documents(task, 3)
        random.seed(7)
        again = generators(llama_tokenizer, data)
        again.documents(plan("ruler", ["1536"], only=["ruler_cwe"])[0], 2)
        assert again.documents(task, 2) == first[:2]
        assert again.documents(task, 3) == first
    assert generators(llama_tokenizer, data, seed=1).documents(task, 3) != first


@pytest.mark.parametrize("needles", [2, 7, 10])
def test_each_text_has_its_needles(llama_tokenizer: TextTokenizer, needles: int) -> None:
    (task,) = plan("mniah", ["1k"], [needles])
    rows = generators(llama_tokenizer).documents(task, 3)
    for row in rows:
        assert row["input"].count("One of the special magic numbers for ") == needles
        assert row["outputs"][0] in row["input"] and row["length"] <= 1024
        assert len(llama_tokenizer.encode(row["input"])) + 128 == row["length"]


def test_questions_of_squad_come_from_the_data(llama_tokenizer: TextTokenizer, data: Path, tmp_path: Path) -> None:
    (task,) = plan("ruler", ["768"], only=["ruler_qa_squad"])
    rows = generators(llama_tokenizer, data).documents(task, 4)
    assert rows[0]["outputs"] == ["The wheel.", "oil"] and "Question: What does paragraph" in rows[0]["input"]
    assert not any("about 2?" in row["input"] for row in rows)  # those have no answer
    with pytest.raises(LucidError, match=r"The questions of ruler_qa_squad are neither at squad/dev-v2\.0\.json"):
        generators(llama_tokenizer, tmp_path).documents(task, 1)
    (tmp_path / "squad").mkdir()
    (tmp_path / "squad/dev-v2.0.json").write_text("{}")
    with pytest.raises(LucidError, match=r"dev-v2\.0\.json is not SQuAD 2\.0's development file"):
        generators(llama_tokenizer, tmp_path).documents(task, 1)


@pytest.mark.parametrize("name", ["ruler_vt", "ruler_cwe", "ruler_fwe", "niah_multikey_3"])
def test_too_short_a_length_is_refused(llama_tokenizer: TextTokenizer, name: str) -> None:
    """Of the first three, lm_eval's own generators would never return."""
    (task,) = plan("ruler", ["150"], only=[name])
    with pytest.raises(LucidError, match=rf"{name}_150: "):
        generators(llama_tokenizer).documents(task, 1)


def test_sentences_are_split_without_tables(llama_tokenizer: TextTokenizer, tmp_path: Path) -> None:
    assert import_generators(tmp_path) in ("Punkt without tables", "punkt_tab")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wonderwords", None)
    with pytest.raises(LucidError, match=r"wonderwords is needed to make RULER's documents"):
        import_generators(None)
