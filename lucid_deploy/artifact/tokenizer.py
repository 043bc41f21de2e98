"""Text to token ids and back, with the tokenizer that lies beside the model."""

from __future__ import annotations

from pathlib import Path

from lucid_deploy.errors import LucidError

_CONTEXT = 4  # pieces that are decoded again with each new token
_LONGEST_CHARACTER = 4  # bytes in UTF-8, and so tokens
_HELD = 4 * _LONGEST_CHARACTER  # tokens held back at most


class TextTokenizer:
    """The ``tokenizer.json`` of an artifact or checkpoint.

    Args:
        directory: Where it lies.

    Raises:
        LucidError: There is none, or it cannot be read.
    """

    def __init__(self, directory: str | Path) -> None:
        from tokenizers import Tokenizer

        path = Path(directory) / "tokenizer.json"
        if not path.is_file():
            raise LucidError(f"{directory} has no tokenizer.json; give the prompt as token ids: --prompt-ids 1,2,3")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
            # Settings of a training batch, stored in some files; they would cut prompts and feed padding as tokens.
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            added = self._tokenizer.get_added_tokens_decoder()
            self._special = frozenset(index for index, token in added.items() if token.special)
        except Exception as error:
            raise LucidError(f"{path} is not a readable tokenizer: {error}") from error

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text, special tokens of the tokenizer's template included unless told otherwise."""
        # A batch of one: only so does the library let other threads run meanwhile, which is seconds for a long text.
        ids: list[int] = self._tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)[0].ids
        return ids

    def is_special(self, token: int) -> bool:
        """Say whether a token is one that :meth:`decode` leaves out."""
        return token in self._special

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids, special tokens left out."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text


class TextStream:
    """Turns token ids into text as they come; a piece is held back while its last character is incomplete.

    The pieces together are the text of all ids decoded at once, for decoders that never change text that is complete
    (all common ones). The work per token does not grow with the text: the ids held back are decoded again, and those
    of the last pieces before them. Bytes that never become a character come out as U+FFFD, one each; decoders count
    them in their own ways.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[list[int]] = []  # ids of the last pieces that are out, so that a decoder sees no start
        self._before = ""  # text of the context
        self._held: list[int] = []  # ids whose text is not out
        self._pieces: list[str] = []

    def push(self, token: int) -> str:
        """Add a token; return the new text, which may be empty."""
        if self._tokenizer.is_special(token):
            return ""
        self._held.append(token)
        text = self._text(self._held)
        if not text.endswith("\ufffd"):
            return self._release(len(self._held), text)
        if len(self._held) < _HELD:
            return ""
        # The last character may still become one, what lies before its bytes will not. Cut between characters.
        for count in range(len(self._held) - _LONGEST_CHARACTER + 1, 0, -1):
            first = self._text(self._held[:count])
            if text.startswith(first):
                return self._release(count, first)
        return ""

    def rest(self) -> str:
        """Return what is still held back; call it after the last token."""
        return self._release(len(self._held), self._text(self._held)) if self._held else ""

    @property
    def text(self) -> str:
        """All text so far, what is held back included."""
        return "".join(self._pieces) + (self._text(self._held) if self._held else "")

    def _text(self, ids: list[int]) -> str:
        """Return the text of ids that come behind the context."""
        context = [token for piece in self._context for token in piece]
        return self._tokenizer.decode(context + ids)[len(self._before) :]

    def _release(self, count: int, text: str) -> str:
        """Let out the text of the first ids held back."""
        self._pieces.append(text)
        self._context.append(self._held[:count])
        self._held = self._held[count:]
        if any(self._pieces[-_CONTEXT:]):  # with no text at all in it, a decoder might take what follows for the start
            del self._context[:-_CONTEXT]
        del self._context[: -8 * _CONTEXT]
        self._before = self._tokenizer.decode([token for piece in self._context for token in piece])
        return text
