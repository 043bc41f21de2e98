"""What requests may ask for, and what reading them may cost."""

from __future__ import annotations

from dataclasses import dataclass

BYTES_PER_BODY_BYTE = 64  # of memory while a body is read: parsed, "[]," is 80 bytes for 3
LEAST_READING_BYTES = 256 << 20


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
        context: Tokens of prompt and answer together.
        vocabulary: Words the model knows.
        prompt_tokens: Tokens of one prompt.
        prompt_characters: Characters of one prompt, or of a chat; checked before anything is tokenized.
        new_tokens: New tokens of one generation.
        rows: Generations of one request.
        body_bytes: Size of a request.
        seconds: Time from the request's first byte to the answer's last.
        reading_seconds: Processor time for reading one request: parsing, the chat template, tokenizing.
    """

    context: int
    vocabulary: int
    prompt_tokens: int
    prompt_characters: int
    new_tokens: int
    rows: int
    body_bytes: int = 4 << 20
    seconds: float = 300.0
    reading_seconds: float = 5.0

    @property
    def reading_bytes(self) -> int:
        """Memory for reading one request, beyond what a reader has anyway."""
        return max(LEAST_READING_BYTES, BYTES_PER_BODY_BYTE * self.body_bytes)
