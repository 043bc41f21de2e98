"""From tokens to text, as they come: whole characters, stop strings, and how much is held back.

The one place where generated tokens become text: ``run``, ``run --batch`` and ``serve`` use :class:`AnswerText`.
"""

from __future__ import annotations

from collections.abc import Sequence

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.generation.stop_strings import StopStrings

_CONTEXT = 4  # pieces that are decoded again with what follows them
_LONGEST_CHARACTER = 4  # bytes in UTF-8, and so tokens
_HELD = 4 * _LONGEST_CHARACTER  # tokens held back at most


class TextStream:
    """Turns token ids into text as they come; a piece is held back while its last character is incomplete.

    The pieces together are the text of all ids decoded at once, for decoders that never change text that is complete
    (all common ones). The work per token does not grow with the text.

    Tokens go through the library's ``DecodeStream``. It holds back without end, and decodes again all that it holds,
    when bytes never become a character; after so many tokens this class goes on without it: the ids held back are
    decoded again, and those of the last pieces before them. Bytes that never become a character come out as U+FFFD,
    one each; decoders count them in their own ways.

    Args:
        tokenizer: Whose ids they are.
        shown: Special tokens that come out as they are spelled; others have no text.
    """

    def __init__(self, tokenizer: TextTokenizer, shown: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._shown = frozenset(shown)
        self._step = tokenizer.decode_steps()
        self._by_steps = True
        self._held: list[int] = []  # ids whose text is not out
        self._context: list[tuple[list[int], str]] = []  # the last pieces that are out, so that a decoder sees no start

    def push(self, token: int) -> str:
        """Add a token; return the new text, which may be empty.

        Raises:
            LucidError: The tokenizer failed on it.
        """
        if self._tokenizer.is_special(token):
            return self.rest() + (self._tokenizer.piece(token) or "") if token in self._shown else ""
        self._held.append(token)
        if self._by_steps:
            text = self._step(token)
            if text is not None:
                return self._release(len(self._held), text)
            self._by_steps = len(self._held) < _HELD
        return "" if self._by_steps else self._whole_characters()

    def rest(self) -> str:
        """Return what is still held back; call it after the last token."""
        return self._release(len(self._held), self._text(self._held)) if self._held else ""

    def _whole_characters(self) -> str:
        """Let out the ids held back up to the last whole character."""
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

    def _text(self, ids: list[int]) -> str:
        """Return the text of ids that come behind the context."""
        context = [token for piece, _ in self._context for token in piece]
        return self._tokenizer.decode(context + ids)[len(self._tokenizer.decode(context)) :]

    def _release(self, count: int, text: str) -> str:
        """Let out the text of the first ids held back."""
        self._context.append((self._held[:count], text))
        self._held = self._held[count:]
        if any(piece for _, piece in self._context[-_CONTEXT:]):  # else a decoder might take what follows for the start
            del self._context[:-_CONTEXT]
        del self._context[: -8 * _CONTEXT]
        return text


class AnswerText:
    """The text of one generation: tokens in, text that may be shown out. It ends before the first stop string.

    Attributes:
        decoded: Characters of all tokens so far, of a stop string and what follows it too.
        shown: Characters that were given out; they are final.
        stopped: Whether a stop string has ended the text; tokens after that change nothing.

    Args:
        tokenizer: Whose ids they are.
        stops: Strings that end the text and are not part of it.
        shown: Special tokens that are text all the same.

    Raises:
        LucidError: A stop string is empty.
    """

    def __init__(self, tokenizer: TextTokenizer, stops: Sequence[str] = (), shown: Sequence[int] = ()) -> None:
        self._stream = TextStream(tokenizer, shown)
        self._stops = StopStrings(stops)
        self.decoded = 0
        self.shown = 0

    @property
    def stopped(self) -> bool:
        """See the class."""
        return self._stops.stopped

    @property
    def held(self) -> int:
        """Characters held back now, because a stop string may begin with them; 0 once the text has ended."""
        return self._stops.held

    def push(self, token: int) -> str:
        """Add a token; return the text that may be shown now.

        Raises:
            LucidError: The tokenizer failed on it.
        """
        return self._through_stops(self._stream.push(token))

    def finish(self) -> str:
        """Return what is held back; call it when no more tokens come."""
        text = self._through_stops(self._stream.rest())
        rest = self._stops.flush()
        self.shown += len(rest)
        return text + rest

    def _through_stops(self, text: str) -> str:
        self.decoded += len(text)
        safe, _ = self._stops.push(text)
        self.shown += len(safe)
        return safe
