"""The words of needles are those that lm_eval's module makes when it is imported as it is."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("wonderwords")
import wonderwords

from lucid_deploy.evaluation.suites.needle_words import MODULE, import_needles
from lucid_deploy.evaluation.suites.ruler import import_generators


class FewWords:
    """Words with capitals and hyphens, some of them twice, in no order: pairs meet that were made of other words."""

    _categories = {  # noqa: RUF012
        "nouns": ["TV", "art-work", "art-a", "art", "age", "TV", "é", "a"],
        "adjectives": ["fat", "Zen", "a", "a-art", "fat", "well-read", "a-TV"],
        "verbs": ["go"],
    }


@pytest.fixture
def few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm_eval's modules are imported anew, after the generators that keep what they have."""
    import nltk

    import_generators(None)
    monkeypatch.setattr(wonderwords, "RandomWord", FewWords)
    monkeypatch.setattr(nltk, "download", lambda *_names, **_options: False)
    monkeypatch.delitem(sys.modules, MODULE)


def imported() -> ModuleType:
    return sys.modules[MODULE]


@pytest.mark.usefixtures("few_words")
def test_the_words_are_lm_evals(monkeypatch: pytest.MonkeyPatch) -> None:
    import_needles()
    ours = imported()
    monkeypatch.delitem(sys.modules, MODULE)
    theirs = importlib.import_module(MODULE)
    assert ours is not theirs and ours.words == theirs.words
    assert ours.WORDS == theirs.WORDS and len(ours.WORDS) < len(ours.words)
    assert "set" not in vars(ours)


def test_what_is_imported_stays() -> None:
    import_generators(None)
    before = imported()
    import_needles()
    assert imported() is before
    assert len(before.WORDS) > 5_000_000 and before.WORDS[0] < before.WORDS[1]


@pytest.mark.usefixtures("few_words")
def test_a_module_that_fails_is_not_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wonderwords, "RandomWord", None)
    with pytest.raises(TypeError):
        import_needles()
    assert MODULE not in sys.modules
