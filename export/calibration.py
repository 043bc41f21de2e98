"""Read the calibration text with the checkpoint's tokenizer, check it, and cut it into rows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.cache.layout import Array
from lucid_deploy.errors import LucidError

if TYPE_CHECKING:
    from lucid_deploy.model.checkpoint import Checkpoint

ROW = 512  # tokens of a row at most; the last row may be shorter
SEED = 0  # for drawing the held-out rows and the rows to learn from, and for the order of distillation's steps
HELD_OUT, HELD_OUT_SHARE = 4, 8  # rows that nothing is learned from: one in 8, at most 4


@dataclass(frozen=True)
class CalibrationRows:
    """The token rows to learn from."""

    rows: list[Array]  # token ids, int64 (B, N): one array for each row length N
    facts: dict[str, Any]  # for the manifest: file, sha256, tokens, rows, row_tokens, seed, held_out (indices of rows)

    @property
    def tokens(self) -> int:
        """The number of tokens in all rows."""
        return sum(ids.size for ids in self.rows)


def read_text(path: Path) -> str:
    """Return the text of a calibration file; ``LucidError`` if it is not readable UTF-8 text, or is blank."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise LucidError(
            f"The calibration text {path} is a pipe or a device, which cannot be read twice. Save the text to a file."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise LucidError(f"{path} is no UTF-8 text (byte {error.start}); --calibration takes a text file.") from error
    except OSError as error:
        raise LucidError(f"The calibration text {path} cannot be read: {error.strerror or error}.") from error
    if not text.strip():
        raise LucidError(f"The calibration text {path} has no text.")
    return text


def read_tokens(checkpoint: Checkpoint, path: Path) -> Array:
    """Return the tokens of a calibration file, UTF-8 text: int64 ``(N,)``."""
    from lucid_deploy.export.companions import read_tokenizer

    if not (checkpoint.directory / "tokenizer.json").is_file():
        raise LucidError(
            f"{checkpoint.directory} has no tokenizer.json to read --calibration with. Put it there, or leave out "
            "--calibration."
        )
    ids = np.array(read_tokenizer(checkpoint.directory).encode(read_text(path)), dtype=np.int64)
    size, largest = checkpoint.config.vocab_size, ids.max(initial=0)
    if largest >= size:
        raise LucidError(
            f"The tokenizer of {checkpoint.directory} gives token id {largest}, outside the vocabulary (0 to "
            f"{size - 1}): the tokenizer is another model's."
        )
    return ids


def calibration_rows(checkpoint: Checkpoint, path: Path, most: int) -> CalibrationRows:
    """Cut a calibration file into rows, hold some of them out, and draw as many of the others as needed.

    Args:
        most: Tokens to use at most; rows of a longer text are drawn with a fixed seed, and the last one is cut.
    """
    joined = read_tokens(checkpoint, path)
    if not len(joined):
        raise LucidError(f"{path} has no tokens to learn from.")
    width = min(ROW, checkpoint.config.max_position_embeddings)
    rows = _cut(joined, width)
    order = np.random.default_rng(SEED).permutation(len(rows) - 1)  # of whole rows; the last may be short
    held_out = order[: min(HELD_OUT, len(rows) // HELD_OUT_SHARE)]
    wanted = -(-most // width)
    chosen = [*order[len(held_out) :], len(rows) - 1][:wanted]
    rows = [rows[index] for index in sorted(chosen)]
    if (beyond := sum(map(len, rows)) - most) > 0:
        rows[-1] = rows[-1][:-beyond]
    by_length: dict[int, list[Array]] = {}
    for row in rows:
        by_length.setdefault(len(row), []).append(row)
    facts = {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "tokens": sum(map(len, rows)),
        "rows": len(rows),
        "row_tokens": width,
        "seed": SEED,
        "held_out": sorted(held_out.tolist()),
    }
    return CalibrationRows([np.stack(group) for group in by_length.values()], facts)


def held_out_rows(checkpoint: Checkpoint, path: Path, facts: dict[str, Any]) -> list[Array]:
    """Return the rows of a calibration file that were held out to measure on, int64 ``(N,)`` each.

    Args:
        path: The file that was given to :func:`calibration_rows`.
        facts: The ``facts`` of the rows that :func:`calibration_rows` returned.
    """
    rows = _cut(read_tokens(checkpoint, path), facts["row_tokens"])
    return [rows[index] for index in facts["held_out"]]


def _cut(joined: Array, width: int) -> list[Array]:
    return [joined[start : start + width] for start in range(0, len(joined), width)]
