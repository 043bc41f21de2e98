"""Single tokens as text and as bytes, for reports of log-probabilities."""

from __future__ import annotations

import re
from functools import lru_cache

from lucid_deploy.artifact.tokenizer import TextTokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # a token that stands for one byte, of tokenizers that fall back to bytes
_SPACE = "▁"  # U+2581, a space in the vocabularies of SentencePiece


class TokenTexts:
    """Gives each token's own text and bytes, which differ where a token is a part of a character.

    Args:
        tokenizer: Whose tokens they are.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._byte_level = "ByteLevel" in tokenizer.decoder_kinds
        self._marks_spaces = bool({"Metaspace", _SPACE} & tokenizer.decoder_kinds)
        self._known: dict[int, tuple[str, bytes | None]] = {}

    def __call__(self, token: int) -> tuple[str, bytes | None]:
        """Return a token's text and its bytes.

        Half a character is U+FFFD as text. A token that the vocabulary does not have is ``("", None)``: the embedding
        may be padded to a round number.
        """
        if token not in self._known:  # at most one entry per word of the vocabulary
            self._known[token] = self._look_up(token)
        return self._known[token]

    def _look_up(self, token: int) -> tuple[str, bytes | None]:
        piece = self._tokenizer.piece(token)
        if piece is None:
            return "", None
        data = self._bytes(token, piece)
        if data is not None:
            return data.decode("utf-8", "replace"), data
        if _SPACE in piece and self._marks_spaces:
            text = piece.replace(_SPACE, " ")
        else:
            text = self._tokenizer.decode([token], skip_special_tokens=False)
        return text, text.encode("utf-8", "replace")

    def _bytes(self, token: int, piece: str) -> bytes | None:
        """Return the bytes of a token that is spelled as bytes."""
        if match := _BYTE.fullmatch(piece):
            return bytes([int(match[1], 16)])
        if not self._byte_level or self._tokenizer.is_added(token):
            return None
        alphabet = byte_alphabet()
        return bytes(alphabet[letter] for letter in piece) if alphabet.keys() >= set(piece) else None


@lru_cache(maxsize=1)
def byte_alphabet() -> dict[str, int]:
    """Return the letters that byte-level tokenizers write for bytes: printable ones stand for themselves, the others
    for U+0100 and up in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
