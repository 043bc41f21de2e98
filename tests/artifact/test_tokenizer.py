"""The tokenizer beside a model: rules that fail, and texts that continue others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import resolve
from tests.generation.sample_tokenizers import BLANKS, make, with_blank_first


def test_a_rule_that_backtracks_for_ever_is_an_error(tmp_path: Path) -> None:
    """The tokenizers library panics, with an exception that is no subclass of ``Exception``."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("^(a+)+$"), "isolated")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = TextTokenizer(tmp_path)
    with pytest.raises(LucidError, match="The tokenizer failed on this text"):
        text.encode("a" * 40 + "b")
    assert text.encode("hello") == [0]


class Interrupted:
    """A tokenizer during whose encoding the user presses Ctrl-C."""

    def __init__(self, path: str) -> None:
        self.whole = Tokenizer.from_file(path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)

    def encode(self, *_: object, **__: object) -> None:
        raise KeyboardInterrupt


def test_an_interruption_is_not_taken_for_a_panic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("word level", tmp_path)
    monkeypatch.setattr(tokenizers, "Tokenizer", SimpleNamespace(from_file=Interrupted))
    text = TextTokenizer(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        text.encode("a")


def test_words_that_a_vocabulary_lacks_are_named() -> None:
    tokenizer = TextTokenizer(resolve("demo"))
    assert tokenizer.unknown_words("fox has zebra lamp, gnu has red zebra. <unk>") == ["zebra", "gnu"]
    assert tokenizer.unknown_words("fox has red lamp.") == []


@pytest.mark.parametrize("kind", BLANKS)
def test_a_text_continues_another_without_a_blank_between_them(kind: str, tmp_path: Path) -> None:
    tokenizer = with_blank_first(kind, tmp_path)
    differ = 0
    for text, more in (("cup", ". fox"), ("cu", "ps"), ("cup", " a"), ("cup.", "\n\na"), ("a", "  b"), ("日", "本 é")):
        first, whole = tokenizer.encode(text, False), tokenizer.decode(tokenizer.encode(text + more, False))
        assert whole.lstrip() == text + more
        assert tokenizer.decode([*first, *tokenizer.encode_behind(more)]) == whole
        differ += tokenizer.decode([*first, *tokenizer.encode(more, False)]) != whole
    assert (differ == 0) == (kind in ("never", "bytes"))
    assert tokenizer.encode_behind("") == []


def test_whole_words_that_continue_a_text_are_encoded_as_usual() -> None:
    """A vocabulary of whole words has no blanks that could be left out."""
    tokenizer = TextTokenizer(resolve("demo"))
    assert tokenizer.encode_behind(". fox has") == tokenizer.encode(". fox has", add_special_tokens=False)
