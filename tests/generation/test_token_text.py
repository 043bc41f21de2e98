"""Single tokens as text and as bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from lucid_deploy.generation.text_stream import TokenTexts
from tests.generation.sample_tokenizers import KINDS, TEXT, byte_ids, ids_of, make


@pytest.mark.parametrize("kind", ["byte-level bpe", "bytes alone"])
def test_bytes_of_byte_level_tokens(kind: str, tmp_path: Path) -> None:
    tokenizer = make(kind, tmp_path)
    texts = TokenTexts(tokenizer)
    assert b"".join(texts(token)[1] or b"" for token in ids_of(kind, tokenizer)).decode().startswith(TEXT)


def test_every_byte_has_a_token(tmp_path: Path) -> None:
    tokenizer = make("bytes alone", tmp_path)
    texts = TokenTexts(tokenizer)
    for byte in range(256):
        assert texts(byte_ids(tokenizer, bytes([byte]))[0])[1] == bytes([byte])
    assert texts(byte_ids(tokenizer, "é".encode())[0]) == ("\ufffd", b"\xc3")


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_beyond_the_vocabulary_has_no_text(kind: str, tmp_path: Path) -> None:
    assert TokenTexts(make(kind, tmp_path))(10**6) == ("", None)


def test_tokens_that_fall_back_to_bytes(tmp_path: Path) -> None:
    tokenizer = make("byte fallback", tmp_path)
    texts = TokenTexts(tokenizer)
    assert texts(258) == (" The", b" The")
    assert texts(267) == ("漢", "漢".encode())
    assert [texts(token)[1] for token in byte_ids(tokenizer, "🦊".encode())] == [b"\xf0", b"\x9f", b"\xa6", b"\x8a"]
    assert texts(0) == ("<s>", b"<s>")


def test_words(tmp_path: Path) -> None:
    texts = TokenTexts(make("word level", tmp_path))
    assert texts(8) == ("漢字", "漢字".encode())
