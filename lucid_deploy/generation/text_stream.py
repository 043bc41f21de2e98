"""Convert tokens to text incrementally, in whole characters and up to a stop string; and single tokens to text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError

_CONTEXT = 4  # returned pieces that are decoded again together with the next tokens
_LONGEST_CHARACTER = 4  # bytes of a character in UTF-8, and so the most tokens that it takes
_HELD = 4 * _LONGEST_CHARACTER  # from this many held tokens on, text before an incomplete last character is released
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # a token for one byte, in tokenizers with byte fallback
_SPACE = "▁"  # U+2581, a space in the vocabularies of SentencePiece


class TextStream:
    """Converts token ids to text incrementally; text is held back while its last character is incomplete.

    The pieces together are the text of all ids decoded at once, for decoders that never change text that is complete
    (all common ones). The work per token does not grow with the text.

    Tokens go through the ``DecodeStream`` of tokenizers, which holds tokens back for ever if their bytes never become a
    character, and decodes all of them again at each step. So once it holds back ``_HELD`` tokens, this class decodes
    the text itself, together with the previous pieces. Bytes that never become a character are decoded to U+FFFD.

    Special tokens have no text unless they are in ``shown``.
    """

    def __init__(self, tokenizer: TextTokenizer, shown: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._shown = frozenset(shown)
        self._step = tokenizer.decode_steps()
        self._by_steps = True
        self._held: list[int] = []  # ids whose text has not been returned yet
        self._context: list[tuple[list[int], str]] = []  # the last returned ids and texts; decoding starts from them

    def push(self, token: int) -> str:
        """Add a token; return the new text, which may be empty."""
        if self._tokenizer.is_special(token):
            return self.rest() + (self._tokenizer.piece(token) or "") if token in self._shown else ""
        self._held.append(token)
        if self._by_steps:
            if (text := self._step(token)) is not None:
                return self._release(len(self._held), text)
            self._by_steps = len(self._held) < _HELD
        return "" if self._by_steps else self._whole_characters()

    def rest(self) -> str:
        """Return the text of all held tokens, such as half a character, which later tokens cannot complete any more."""
        self._by_steps &= not self._held  # the DecodeStream would return the text that it holds a second time
        return self._release(len(self._held), self._text(self._held)) if self._held else ""

    def _whole_characters(self) -> str:
        """Return the held text if its last character is whole; else, from ``_HELD`` ids on, the text before it."""
        text = self._text(self._held)
        if not text.endswith("\ufffd"):
            return self._release(len(self._held), text)
        if len(self._held) < _HELD:
            return ""
        # Only the last character may still be completed, so cut between characters before it.
        for count in range(len(self._held) - _LONGEST_CHARACTER + 1, 0, -1):
            first = self._text(self._held[:count])
            if text.startswith(first):
                return self._release(count, first)
        return ""

    def _text(self, ids: list[int]) -> str:
        """Return the text that ids add after the context."""
        context = [token for piece, _ in self._context for token in piece]
        return self._tokenizer.decode(context + ids)[len(self._tokenizer.decode(context)) :]

    def _release(self, count: int, text: str) -> str:
        """Move the first ``count`` held ids, whose text is ``text``, to the context; return the text."""
        self._context.append((self._held[:count], text))
        self._held = self._held[count:]
        if any(piece for _, piece in self._context[-_CONTEXT:]):  # after empty pieces only, a decoder may drop a space
            del self._context[:-_CONTEXT]
        del self._context[: -8 * _CONTEXT]
        return text


class StopStrings:
    """Finds stop strings in text that arrives in pieces of any size; the size does not change the result.

    Text that may become a stop string is held back. Of several stop strings, the one that ends first counts; of those
    that end together, the longest.

    Attributes:
        stopped: Whether a stop string was found.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        check_stops(stops)
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    @property
    def held(self) -> int:
        return len(self._held)

    def push(self, text: str) -> tuple[str, bool]:
        """Add text; return the text that is safe to show, and whether a stop string has been found."""
        if self.stopped:
            return "", True
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]], True
        keep = self._possible(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """Return the text that is held back; call it at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _possible(self, text: str) -> int:
        """Return the length of the longest suffix of a text that is a prefix of a stop string."""
        longest = min(max((len(stop) - 1 for stop in self._stops), default=0), len(text))
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[len(text) - length :]) for stop in self._stops):
                return length
        return 0


def check_stops(stops: Sequence[str]) -> None:
    """Raise a LucidError if a stop string is empty."""
    if any(not stop for stop in stops):
        raise LucidError("A stop string must not be empty.")


class AnswerText:
    """Converts the tokens of one generation to the text that may be shown, which ends before the first stop string.

    Attributes:
        decoded: Number of characters decoded so far, including a stop string and what follows it.
        shown: Number of characters that were returned; they are final.

    Args:
        stops: Strings that end the text and are not part of it.
        shown: Special tokens whose text is part of the answer.
    """

    def __init__(self, tokenizer: TextTokenizer, stops: Sequence[str] = (), shown: Sequence[int] = ()) -> None:
        self._stream = TextStream(tokenizer, shown)
        self._stops = StopStrings(stops)
        self.decoded = 0
        self.shown = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text; tokens after that add no text."""
        return self._stops.stopped

    @property
    def held(self) -> int:
        """Number of characters held back because a stop string may begin with them; 0 once the text has ended."""
        return self._stops.held

    def push(self, token: int) -> str:
        """Add a token; return the text that may be shown now."""
        return self._through_stops(self._stream.push(token))

    def finish(self) -> str:
        """Return the text that is held back; call it after the last token."""
        text = self._through_stops(self._stream.rest())
        rest = self._stops.flush()
        self.shown += len(rest)
        return text + rest

    def _through_stops(self, text: str) -> str:
        self.decoded += len(text)
        safe, _ = self._stops.push(text)
        self.shown += len(safe)
        return safe


class TokenTexts:
    """Looks up each token's own text and bytes; a token that is part of a character has U+FFFD as text."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._byte_level = "ByteLevel" in tokenizer.decoder_kinds
        self._marks_spaces = bool({"Metaspace", _SPACE} & tokenizer.decoder_kinds)
        self._known: dict[int, tuple[str, bytes | None]] = {}

    def __call__(self, token: int) -> tuple[str, bytes | None]:
        """Return a token's text and its bytes.

        The result is ``("", None)`` for ids without a token, which exist if the embedding is padded to a round size.
        """
        if token not in self._known:  # at most one entry per token of the vocabulary
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
        """Return the bytes of a token such as ``<0x0A>``, or of a byte-level vocabulary; None for other tokens."""
        if match := _BYTE.fullmatch(piece):
            return bytes([int(match[1], 16)])
        if not self._byte_level or self._tokenizer.is_added(token):
            return None
        alphabet = byte_alphabet()
        return bytes(alphabet[letter] for letter in piece) if alphabet.keys() >= set(piece) else None


@lru_cache(maxsize=1)
def byte_alphabet() -> dict[str, int]:
    """Return the byte of each character in byte-level vocabularies; unprintable bytes are U+0100 and up."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


@dataclass(frozen=True, slots=True)
class TokenText:
    """A token as text and as bytes (None if the vocabulary does not have it), and its log-probability."""

    text: str
    data: bytes | None
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A chosen token, whose text begins after ``offset`` characters, and the likeliest tokens at its position."""

    chosen: TokenText
    top: tuple[TokenText, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class TextPiece:
    """The text that a token, or the end, of generation ``row`` adds to its answer."""

    row: int
    text: str  # new text, which is final; empty if all of it is held back
    tokens: int  # 1, or 0 for the end
    logprobs: tuple[TokenLogprob, ...] = ()
    reason: str = ""  # why the generation ended, ``stop`` or ``length``; empty if it continues
    reused: int = 0  # prompt tokens taken from a stored prefix
