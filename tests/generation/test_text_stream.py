"""A stream of tokens gives the text of all of them decoded at once, with work that does not grow; stop strings."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lucid_deploy.artifact.tokenizer import TextStream, TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.stop_strings import StopStrings

TEXT = "The fox 🦊 naïve — 漢字 and 漢語, 👩‍👩‍👧 \n\n  two  spaces\tтекст é é! don't stop.  "
KINDS = ["byte-level bpe", "bytes alone", "word level", "word piece", "llama"]


def make(kind: str, directory: Path) -> TextTokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if kind == "byte-level bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=["<s>"])
        tokenizer.train_from_iterator([TEXT] * 3, trainer)
    elif kind == "bytes alone":
        tokenizer = Tokenizer(models.BPE({sign: i for i, sign in enumerate(sorted(alphabet))}, []))
        tokenizer.decoder = decoders.ByteLevel()
    elif kind == "llama":  # pieces with ▁ for a space, single bytes for the rest
        vocabulary = {"<s>": 0, **{f"<0x{i:02X}>": i + 1 for i in range(256)}}
        for piece in ["▁", "▁The", "▁fox", "▁and", "▁two", "s", "▁▁", ".", "\n", "fox", "漢"]:
            vocabulary[piece] = len(vocabulary)
        tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
        tokenizer.add_special_tokens(["<s>"])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:
        words = ["[UNK]", "the", "fox", "##es", ".", ",", "'", "s", "漢字", "é", "##s", "n't", "!", "?"]
        tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
        if kind == "word piece":
            tokenizer.decoder = decoders.WordPiece(cleanup=True)
    path = directory / "tokenizer.json"
    tokenizer.save(str(path))
    return TextTokenizer(directory)


def ids_of(kind: str, tokenizer: TextTokenizer) -> list[int]:
    """Tokens whose text is whole at the end."""
    if kind == "byte-level bpe":
        return tokenizer.encode(TEXT * 3)
    if kind == "bytes alone":
        signs = sorted(pre_tokenizers.ByteLevel.alphabet())
        encoded = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(TEXT)
        return [signs.index(sign) for piece, _ in encoded for sign in piece]
    rng = np.random.default_rng(0)
    if kind == "llama":
        characters = [[byte + 1 for byte in sign.encode()] for sign in "🦊é漢a"]
        pieces = [*([index] for index in range(257, 268)), *characters, [0]]
        chosen = rng.integers(len(pieces), size=200)
        return [0, 0, 257, 258, *(token for index in chosen for token in pieces[index]), 265]
    return [int(token) for token in rng.integers(14, size=200)]


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_the_whole_text(kind: str, tmp_path: Path) -> None:
    tokenizer = make(kind, tmp_path)
    ids = ids_of(kind, tokenizer)
    stream, shown = TextStream(tokenizer), ""
    for count, token in enumerate(ids, start=1):
        shown += stream.push(token)
        whole = tokenizer.decode(ids[:count])
        if not whole.endswith("\ufffd"):
            assert shown == stream.text == whole
    assert shown + stream.rest() == stream.text == tokenizer.decode(ids)


def test_bytes_that_are_no_characters_do_not_hold_back_for_ever(tmp_path: Path) -> None:
    tokenizer = make("bytes alone", tmp_path)
    good = ids_of("bytes alone", tokenizer)
    rng = np.random.default_rng(1)
    ids = [*rng.integers(256, size=300).tolist(), *good, *rng.integers(256, size=300).tolist(), *good]
    stream = TextStream(tokenizer)
    shown, longest = "", 0
    for count, token in enumerate(ids, start=1):
        shown += stream.push(token)
        longest = max(longest, len(tokenizer.decode(ids[:count])) - len(shown))
    assert shown + stream.rest() == tokenizer.decode(ids)
    assert longest <= 16


@pytest.mark.parametrize("kind", KINDS)
def test_work_for_a_token_does_not_grow(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make(kind, tmp_path)
    ids, longest = ids_of(kind, tokenizer) * 5, 0
    decode = tokenizer.decode

    def counted(part: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(part))
        return decode(part)

    monkeypatch.setattr(tokenizer, "decode", counted)
    stream = TextStream(tokenizer)
    for token in ids:
        stream.push(token)
    assert 0 < longest <= 64


@pytest.mark.parametrize(
    ("stops", "text", "shown", "stopped"),
    [
        ([], "anything", "anything", False),
        (["STOP"], "no end here ST", "no end here ST", False),
        (["STOP"], "one STOP two", "one ", True),
        (["STOP"], "SSTSTOSTOP!", "SSTSTO", True),
        (["aab"], "aaab", "a", True),
        (["abcd", "bc"], "xabcd", "xa", True),
        (["bc", "abc"], "xabc", "x", True),
        (["\n\n", "🦊"], "a\nb🦊c\n\n", "a\nb", True),
    ],
)
def test_stop_strings_in_pieces_of_any_size(stops: list[str], text: str, shown: str, stopped: bool) -> None:
    for size in range(1, len(text) + 1):
        matcher, out, found = StopStrings(stops), "", False
        for start in range(0, len(text), size):
            piece, found = matcher.push(text[start : start + size])
            out += piece
            assert shown.startswith(out)
            if found:
                break
        out += matcher.flush()
        assert (out, found, matcher.stopped) == (shown, stopped, stopped)


def test_text_is_held_back_no_longer_than_needed() -> None:
    matcher = StopStrings(["STOP"])
    assert [matcher.push(piece)[0] for piece in ("a S", "TO", "ST", "x")] == ["a ", "", "STO", "STx"]
    assert matcher.flush() == ""


def test_nothing_comes_after_a_stop_string() -> None:
    matcher = StopStrings(["."])
    assert [matcher.push(piece) for piece in ("a.b", "c")] == [("a", True), ("", True)]
    assert matcher.flush() == ""
    with pytest.raises(LucidError, match="empty"):
        StopStrings(["a", ""])


def test_random_text_against_a_plain_search() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        text = "".join(rng.choice(list("ab"), size=20))
        stops = ["".join(rng.choice(list("ab"), size=rng.integers(1, 6))) for _ in range(rng.integers(1, 4))]
        end = min((text[:n] for n in range(21) if text[:n].endswith(tuple(stops))), key=len, default=None)
        expected = text if end is None else end[: min(len(end) - len(s) for s in stops if end.endswith(s))]
        matcher, out = StopStrings(stops), ""
        for first, second in itertools.pairwise([0, *sorted(rng.integers(0, 21, 4).tolist()), 20]):
            out += matcher.push(text[first:second])[0]
        assert out + matcher.flush() == expected


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
