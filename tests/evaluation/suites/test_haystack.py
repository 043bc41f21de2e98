"""The text that needles are hidden in."""

from __future__ import annotations

from pathlib import Path

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.suites.haystack import open_haystack


def test_the_bundled_text_has_sentences_that_any_splitter_finds() -> None:
    """With NLTK's tables and without them: full stops end sentences and stand nowhere else."""
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    text = " ".join(open_haystack("bundled", None).words)
    assert len(text) > 4000 and text.isascii()
    assert PunktSentenceTokenizer().tokenize(text) == [f"{part}." for part in text.removesuffix(".").split(". ")]


def test_a_text_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("One\n\n two.  Three", encoding="utf-8-sig")  # as Windows' programs do
    found = open_haystack(str(path), None)
    assert found.words == ("One", "two.", "Three") and found.to_dict()["source"] == "own.txt"
    assert found.at_least(4) == [*found.words, *found.words]
    other = tmp_path / "other.txt"
    other.write_text("One two.")
    assert open_haystack(str(other), None).to_dict()["sha256"] != found.to_dict()["sha256"]


def test_essays_come_from_the_data(tmp_path: Path) -> None:
    (tmp_path / "essays").mkdir()
    (tmp_path / "essays/b.txt").write_text("second")
    (tmp_path / "essays/a.txt").write_text("first")
    assert open_haystack("essays", tmp_path).words == ("first", "second")


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(LucidError, match=r"empty\.txt has no words"):
        open_haystack(str(tmp_path / "empty.txt"), None)
    with pytest.raises(LucidError, match="cannot be read"):
        open_haystack(str(tmp_path / "nowhere.txt"), None)
    with pytest.raises(LucidError, match=r"neither at essays/\*\.txt .* python examples/fetch_suites\.py ruler"):
        open_haystack("essays", tmp_path)
