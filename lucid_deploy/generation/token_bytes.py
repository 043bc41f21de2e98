"""The bytes that each token of a vocabulary adds to an answer, at its beginning and behind other tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.token_text import byte_alphabet

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_TRIALS, _TRIAL_LENGTH = 64, 6  # random texts that the bytes are checked with


@dataclass(frozen=True)
class TokenBytes:
    """What tokens add to a text; empty for special tokens and those without text of their own.

    Attributes:
        first: Of each token as the first of an answer: many decoders drop a space there.
        later: Of each token behind others.
    """

    first: list[bytes]
    later: list[bytes]


def token_bytes(tokenizer: TextTokenizer, vocabulary: int) -> TokenBytes:
    """Return the bytes of the tokens 0 to ``vocabulary − 1``.

    Raises:
        LucidError: The decoder changes a text by what follows it, so that tokens have no bytes of their own.
    """
    kinds = tokenizer.decoder_kinds
    alphabet = byte_alphabet() if "ByteLevel" in kinds else {}
    first, later = [b""] * vocabulary, [b""] * vocabulary
    by_text = []
    for token in range(vocabulary):
        piece = tokenizer.piece(token)
        if piece is None or tokenizer.is_special(token):
            continue
        if "ByteFallback" in kinds and (match := _BYTE.fullmatch(piece)):
            first[token] = later[token] = bytes([int(match[1], 16)])
        elif alphabet and not tokenizer.is_added(token) and alphabet.keys() >= set(piece):
            first[token] = later[token] = bytes(alphabet[letter] for letter in piece)
        else:
            by_text.append(token)
    _by_decoding(tokenizer, by_text, first, later)
    found = TokenBytes(first, later)
    _check(tokenizer, found)
    return found


def _by_decoding(tokenizer: TextTokenizer, tokens: Sequence[int], first: list[bytes], later: list[bytes]) -> None:
    """Fill in the bytes of tokens, from their text alone and behind another token."""
    alone = tokenizer.decode_many([[token] for token in tokens])
    anchors = [token for token, text in zip(tokens, alone, strict=True) if text.isalpha() and text.isascii()]
    if not anchors:
        anchors = [token for token, data in enumerate(later) if data.isalpha()]
    if not anchors:
        return
    anchor = anchors[0]
    start = tokenizer.decode([anchor])
    for token, text, pair in zip(tokens, alone, tokenizer.decode_many([[anchor, t] for t in tokens]), strict=True):
        if pair.startswith(start) and "\ufffd" not in pair and "\ufffd" not in text:
            first[token], later[token] = text.encode(), pair[len(start) :].encode()
    _space_by_byte(tokenizer, anchor, first, later)


def _space_by_byte(tokenizer: TextTokenizer, anchor: int, first: list[bytes], later: list[bytes]) -> None:
    """Drop the space of a single-byte token at the beginning too, where the decoder does."""
    spaces = [token for token, data in enumerate(first) if data == b" "]
    for token, text in zip(spaces, tokenizer.decode_many([[token, anchor] for token in spaces]), strict=True):
        if text.encode() == later[anchor]:
            first[token] = b""


def _check(tokenizer: TextTokenizer, found: TokenBytes) -> None:
    """Compare random texts with their bytes."""
    rng = np.random.default_rng(0)
    whole = [token for token, data in enumerate(found.later) if data and _is_text(data)]
    if not whole:
        return
    trials = [[int(token) for token in rng.choice(whole, _TRIAL_LENGTH)] for _ in range(_TRIALS)]
    for ids, text in zip(trials, tokenizer.decode_many(trials), strict=True):
        if b"".join([found.first[ids[0]], *(found.later[token] for token in ids[1:])]).decode() != text:
            raise LucidError(
                "Answers of this model cannot be held to a form: the decoder in its tokenizer.json changes text by "
                "what follows it, so that tokens have no text of their own."
            )


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
