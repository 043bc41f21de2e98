"""A stream of tokens gives the text of all of them, up to a stop string; single tokens have texts and bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.generation.text_stream import AnswerText, StopStrings, TextStream, TokenTexts
from tests.generation.sample_tokenizers import KINDS, TEXT, byte_ids, ids_of, make

BY_BYTES = ["bytes alone", "byte fallback"]


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_together_are_the_text_so_far(kind: str, tmp_path: Path) -> None:
    tokenizer = make(kind, tmp_path)
    ids = ids_of(kind, tokenizer)
    stream, shown = TextStream(tokenizer), ""
    for count, token in enumerate(ids, start=1):
        shown += stream.push(token)
        whole = tokenizer.decode(ids[:count])
        if not whole.endswith("\ufffd"):
            assert shown == whole
    assert shown + stream.rest() == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", BY_BYTES)
def test_only_whole_characters_come_out(kind: str, tmp_path: Path) -> None:
    tokenizer = make(kind, tmp_path)
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in byte_ids(tokenizer, "aé漢🦊.".encode())]
    assert pieces == ["a", "", "é", "", "", "漢", "", "", "", "🦊", "."]
    assert stream.rest() == ""


@pytest.mark.parametrize("kind", BY_BYTES)
def test_rest_returns_an_incomplete_last_character(kind: str, tmp_path: Path) -> None:
    tokenizer = make(kind, tmp_path)
    ids = byte_ids(tokenizer, "a🦊".encode())[:-1]
    stream = TextStream(tokenizer)
    assert "".join(map(stream.push, ids)) == "a"
    rest = stream.rest()
    assert rest and set(rest) == {"\ufffd"}
    behind = {"bytes alone": 65, "byte fallback": 267}[kind]
    assert stream.push(behind) == tokenizer.decode([behind])  # as after a shown special token


@pytest.mark.parametrize(("kind", "between"), [("bytes alone", []), ("byte fallback", [266])])
@pytest.mark.parametrize("byte", [0x80, 0xC3, 0xF0, 0xFF])
def test_a_character_after_any_number_of_broken_bytes_is_whole(
    kind: str, between: list[int], byte: int, tmp_path: Path
) -> None:
    """A decoder with byte fallback takes a whole run of byte tokens for broken, up to the next other token."""
    tokenizer = make(kind, tmp_path)
    for count in range(40):
        stream = TextStream(tokenizer)
        ids = [*byte_ids(tokenizer, bytes([byte]) * count), *between, *byte_ids(tokenizer, "🦊 é".encode())]
        shown = "".join(map(stream.push, ids))
        assert shown.lstrip("\ufffd") == tokenizer.decode(between) + "🦊 é"
        assert stream.rest() == ""


@pytest.mark.parametrize("kind", KINDS)
def test_work_for_a_token_does_not_grow_with_a_text(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ids that this class decodes again stay few, and so do those that the library's stream holds and decodes."""
    tokenizer = make(kind, tmp_path)
    broken = byte_ids(tokenizer, b"\xf0" * 200) if kind in BY_BYTES else []
    decoded = held = waiting = 0
    decode, decode_steps = tokenizer.decode, tokenizer.decode_steps

    def counted_decode(part: list[int], skip_special_tokens: bool = True) -> str:
        nonlocal decoded
        decoded = max(decoded, len(part))
        return decode(part, skip_special_tokens)

    def counted_steps() -> Callable[[int], str | None]:
        step = decode_steps()

        def counted(token: int) -> str | None:
            nonlocal held, waiting
            text = step(token)
            waiting = waiting + 1 if text is None else 0
            held = max(held, waiting)
            return text

        return counted

    monkeypatch.setattr(tokenizer, "decode", counted_decode)
    monkeypatch.setattr(tokenizer, "decode_steps", counted_steps)
    stream = TextStream(tokenizer)
    for token in ids_of(kind, tokenizer) * 5 + broken:
        stream.push(token)
    assert held <= 16
    assert decoded <= 80  # four pieces of thirteen tokens, and sixteen that are held back
    assert (decoded > 0) == (kind in BY_BYTES)


def test_special_tokens_add_no_text_and_no_work(tmp_path: Path) -> None:
    tokenizer = make("byte fallback", tmp_path)
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in [0, 258, *[0] * 100, 259, 0]]
    assert "".join(pieces) == tokenizer.decode([258, 259]) == "The fox"
    assert stream.rest() == ""


def test_a_decoder_that_changes_earlier_text_raises_no_error(tmp_path: Path) -> None:
    """The library's own stream raises an error in this case."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "X")])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    stream = TextStream(TextTokenizer(tmp_path))
    assert "".join(stream.push(token) for token in [2, 0, 1, *[2] * 40]).endswith("c" * 24)


@pytest.mark.parametrize("kind", ["byte-level bpe", *BY_BYTES])
def test_a_stop_string_is_found_across_tokens_and_within_characters(kind: str, tmp_path: Path) -> None:
    """Every place in which a stop string can begin and end; the text after it is decoded, and not shown."""
    tokenizer = make(kind, tmp_path)
    text = "The fox é漢🦊 and two"
    ids = tokenizer.encode(text) if kind == "byte-level bpe" else byte_ids(tokenizer, text.encode())
    assert tokenizer.decode(ids) == text
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            answer, shown = AnswerText(tokenizer, ["nowhere", text[start:end]]), ""
            for token in ids:
                piece = answer.push(token)
                shown += piece
                assert len(shown) + answer.held <= answer.decoded
                if answer.stopped:
                    break
            shown += answer.finish()
            assert shown == text[: text.index(text[start:end])]
            assert (answer.stopped, answer.shown, answer.held) == (True, len(shown), 0)


def test_held_back_characters_are_counted(tmp_path: Path) -> None:
    tokenizer = make("bytes alone", tmp_path)
    answer = AnswerText(tokenizer, ["é漢x"])
    counts = []
    for token in byte_ids(tokenizer, "aé漢é漢".encode()):
        answer.push(token)
        counts.append((answer.decoded, answer.shown, answer.held))
    expected = [(1, 1, 0)] * 2 + [(2, 1, 1)] * 3 + [(3, 1, 2)] * 2 + [(4, 3, 1)] * 3 + [(5, 3, 2)]
    assert counts == expected
    assert answer.finish() == "é漢"
    assert (answer.decoded, answer.shown, answer.held, answer.stopped) == (5, 5, 0, False)


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
def test_stop_strings_are_found_in_pieces_of_any_size(stops: list[str], text: str, shown: str, stopped: bool) -> None:
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


@pytest.mark.parametrize("kind", ["byte-level bpe", "bytes alone"])
def test_bytes_of_byte_level_tokens_are_those_of_the_text(kind: str, tmp_path: Path) -> None:
    tokenizer = make(kind, tmp_path)
    texts = TokenTexts(tokenizer)
    assert b"".join(texts(token)[1] or b"" for token in ids_of(kind, tokenizer)).decode().startswith(TEXT)


def test_byte_fallback_tokens_have_a_text_and_bytes(tmp_path: Path) -> None:
    tokenizer = make("byte fallback", tmp_path)
    texts = TokenTexts(tokenizer)
    assert texts(258) == (" The", b" The")
    assert texts(267) == ("漢", "漢".encode())
    assert [texts(token)[1] for token in byte_ids(tokenizer, "🦊".encode())] == [b"\xf0", b"\x9f", b"\xa6", b"\x8a"]
    assert texts(0) == ("<s>", b"<s>")
