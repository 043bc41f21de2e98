"""What requests may ask for, what reading them may cost, and the memory that their bodies may take together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lucid_deploy.serving.errors import unavailable

BYTES_PER_BODY_BYTE = 64  # of memory while a body is read: parsed, "[]," is 80 bytes for 3
LEAST_READING_BYTES = 256 << 20
FREE_BYTES = 64 << 10  # of each body that do not count: small requests get in whatever large ones take
BODIES = 16  # as many of the largest bodies may be in memory at once


@dataclass(frozen=True)
class Limits:
    """What a request may ask for."""

    context: int  # tokens of prompt and answer together
    vocabulary: int  # words the model knows
    prompt_tokens: int  # tokens of one prompt
    prompt_characters: int  # characters of one prompt, or of a chat; checked before anything is tokenized
    new_tokens: int  # new tokens of one generation
    choices: int  # generations of one request: prompts times ``n``
    body_bytes: int = 4 << 20  # size of a request
    seconds: float = 300.0  # time from the request's first byte to the answer's last
    reading_seconds: float = 5.0  # processor time for reading one request: parsing, the chat template, tokenizing

    @property
    def reading_bytes(self) -> int:
        """Memory for reading one request, beyond what a reader has anyway."""
        return max(LEAST_READING_BYTES, BYTES_PER_BODY_BYTE * self.body_bytes)


class BodyMemory:
    """The bytes of bodies in memory, over all requests: received and not yet read.

    Args:
        most: Bytes, beyond the first :data:`FREE_BYTES` of each.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0

    @contextmanager
    def share(self) -> Iterator[BodyShare]:
        """Count the memory of one body until the end of the ``with``."""
        share = BodyShare(self)
        try:
            yield share
        finally:
            share.grow(0)


class BodyShare:
    """The memory of one body."""

    def __init__(self, memory: BodyMemory) -> None:
        self._memory = memory
        self._taken = 0

    def grow(self, size: int) -> None:
        """Count so many bytes of the body, instead of those before."""
        more = max(0, size - FREE_BYTES) - self._taken
        if more > 0 and self._memory.taken + more > self._memory.most:
            raise unavailable("Too many large requests are being read at once. Send it again.", "too_many_bodies")
        self._taken += more
        self._memory.taken += more
