"""Text to token ids and back, with the tokenizer that lies beside the model."""

from __future__ import annotations

from pathlib import Path

from lucid_deploy.errors import LucidError


class TextTokenizer:
    """The ``tokenizer.json`` of an artifact or checkpoint.

    Args:
        directory: Where it lies.

    Raises:
        LucidError: There is none, or it cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        from tokenizers import Tokenizer

        path = directory / "tokenizer.json"
        if not path.is_file():
            raise LucidError(f"{directory} has no tokenizer.json; give the prompt as token ids: --prompt-ids 1,2,3")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
            # Settings of a training batch, stored in some files; they would cut prompts and feed padding as tokens.
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
        except Exception as error:
            raise LucidError(f"{path} is not a readable tokenizer: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, special tokens of the tokenizer's template included."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids, special tokens left out."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text


class TextStream:
    """Turns token ids into text as they come; a piece is held back while its last character is incomplete."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = ""

    def push(self, token: int) -> str:
        """Add a token; return the new text, which may be empty."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        if text.endswith("\ufffd"):
            return ""
        new, self._shown = text[len(self._shown) :], text
        return new

    def rest(self) -> str:
        """Return what is still held back; call it after the last token."""
        return self.text[len(self._shown) :]

    @property
    def text(self) -> str:
        """All text so far."""
        return self._tokenizer.decode(self._ids)
