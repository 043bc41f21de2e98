"""Text on both sides of the model, and single tokens with their bytes."""

from __future__ import annotations

import json
import re
from functools import cached_property, lru_cache
from pathlib import Path

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.serving.jobs import TokenText


class ServingTokenizer(TextTokenizer):
    """The artifact's tokenizer.

    Raises:
        LucidError: There is none, or it cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._texts: dict[int, tuple[str, bytes | None]] = {}

    def encode_rendered(self, text: str) -> list[int]:
        """Return the ids of a rendered chat, which has its special tokens in the text already."""
        return self.encode(text, add_special_tokens=False)

    def token(self, token: int, logprob: float) -> TokenText:
        """Return a token by itself. Half a character has no text of its own, but bytes."""
        if token not in self._texts:  # at most one entry per word of the vocabulary
            self._texts[token] = self._token_text(token)
        text, data = self._texts[token]
        return TokenText(text, data, logprob)

    def _token_text(self, token: int) -> tuple[str, bytes | None]:
        raw = self._tokenizer.id_to_token(token)
        if raw is None:  # ids beyond the vocabulary: the embedding may be padded to a round number
            return "", None
        if match := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", raw):
            data = bytes([int(match[1], 16)])
            return data.decode("utf-8", "replace"), data
        if self._byte_level and not self._is_added(token):
            alphabet = _byte_alphabet()
            if all(letter in alphabet for letter in raw):
                data = bytes(alphabet[letter] for letter in raw)
                return data.decode("utf-8", "replace"), data
        if "▁" in raw and self._metaspace:
            text = raw.replace("▁", " ")
        else:
            text = self._tokenizer.decode([token], skip_special_tokens=False)
        return text, text.encode("utf-8", "replace")

    def _is_added(self, token: int) -> bool:
        return token in self._tokenizer.get_added_tokens_decoder()

    @cached_property
    def _decoder_kinds(self) -> set[str]:
        decoder = json.loads(self._tokenizer.to_str()).get("decoder") or {}
        return {part.get("type", "") for part in [decoder, *decoder.get("decoders", [])]} | {
            str(part.get("pattern", {}).get("String", "")) for part in decoder.get("decoders", [])
        }

    @cached_property
    def _byte_level(self) -> bool:
        return "ByteLevel" in self._decoder_kinds

    @cached_property
    def _metaspace(self) -> bool:
        return bool({"Metaspace", "▁"} & self._decoder_kinds)


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """Return the letters that byte-level tokenizers write for bytes: printable ones stand for themselves, the others
    for U+0100 and up in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
