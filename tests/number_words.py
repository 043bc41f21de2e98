"""A tokenizer whose words are the ids of tokens, so that a test can say in a text which tokens it means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers


def write_number_words(checkpoint: Path, size: int) -> None:
    """Give a checkpoint a tokenizer with the words 0 to ``size - 1``."""
    tokenizer = Tokenizer(models.WordLevel({str(token): token for token in range(size)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(checkpoint / "tokenizer.json"))


def write_numbers(path: Path, rows: Iterable[Sequence[int]]) -> Path:
    """Write rows of token ids as lines of text."""
    path.write_text("\n".join(" ".join(map(str, row)) for row in rows))
    return path
