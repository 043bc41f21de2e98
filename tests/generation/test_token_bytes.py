"""The bytes of tokens against what the tokenizer's decoder writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.guide import token_bytes
from tests.generation.sample_tokenizers import KINDS, ids_of, make


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_together_are_the_text(kind: str, tmp_path: Path) -> None:
    tokenizer = make(kind, tmp_path)
    found = token_bytes(tokenizer, 340)
    assert len(found.first) == len(found.later) == 340 and found.later[339] == b""
    ids = [token for token in ids_of(kind, tokenizer) if not tokenizer.is_special(token)]
    for start in range(0, len(ids), 7):
        part = ids[start:]
        data = b"".join([found.first[part[0]], *(found.later[token] for token in part[1:])])
        text = tokenizer.decode(part)
        if "\ufffd" not in text and b"\xff" not in data:
            assert data.decode("utf-8", "replace") == text


def test_special_tokens_have_none(tmp_path: Path) -> None:
    for kind in ("byte-level bpe", "byte fallback"):
        assert token_bytes(make(kind, tmp_path), 300).later[0] == b""


def test_a_decoder_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"fox</w>": 0, "red</w>": 1, "un": 2}, unk_token="un"))
    tokenizer.decoder = decoders.BPEDecoder()  # a space behind every word but the last
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(LucidError, match="cannot be held to a form"):
        token_bytes(TextTokenizer(tmp_path), 3)
