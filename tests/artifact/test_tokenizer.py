"""The tokenizer beside a model: long texts, and rules that fail."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from tests.generation.sample_tokenizers import TEXT, make


def test_encoding_a_long_text_lets_other_threads_run(tmp_path: Path) -> None:
    """A server tokenizes in a thread: the others must not stand still for as long as that takes."""
    tokenizer, text = make("byte-level bpe", tmp_path), TEXT * 8000
    ended, ticks = threading.Event(), [time.perf_counter()]

    def tick() -> None:
        while not ended.wait(0.002):
            ticks.append(time.perf_counter())

    ticking = threading.Thread(target=tick)
    ticking.start()
    try:
        started = time.perf_counter()
        tokenizer.encode(text)
        seconds = time.perf_counter() - started
    finally:
        ended.set()
        ticking.join()
    assert max(after - before for before, after in itertools.pairwise(ticks)) < seconds / 2


def test_a_rule_that_backtracks_for_ever_is_an_error(tmp_path: Path) -> None:
    """The library panics there, with an exception that is none of Python's."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("^(a+)+$"), "isolated")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = TextTokenizer(tmp_path)
    with pytest.raises(LucidError, match="The tokenizer failed on this text"):
        text.encode("a" * 40 + "b")
    assert text.encode("hello") == [0]


def test_an_interruption_is_not_taken_for_a_panic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def encode_batch(self, *_: object, **__: object) -> None:
            raise KeyboardInterrupt

    text = make("word level", tmp_path)
    monkeypatch.setattr(text, "_tokenizer", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        text.encode("a")
