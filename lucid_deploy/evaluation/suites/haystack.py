"""The text that needles are hidden in: a bundled one, the user's, or the essays that RULER uses."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.suites.missing import missing_data

BUNDLED, ESSAYS = "bundled", "essays"
_ESSAYS_ON_HUB = "baber/paul_graham_essays"


@dataclass(frozen=True)
class Haystack:
    """A text and where it is from.

    Attributes:
        source: ``bundled``, ``essays``, or the name of the user's file.
        words: Its words, white space left out.
    """

    source: str
    words: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Return what tells it from other texts, for JSON."""
        digest = hashlib.sha256(" ".join(self.words).encode()).hexdigest()
        return {"source": self.source, "words": len(self.words), "sha256": digest}

    def at_least(self, words: int) -> list[str]:
        """Return its words, over again as often as needed for so many, as RULER's own script does with its essays."""
        return list(self.words) * max(1, -(-words // len(self.words)))


def open_haystack(source: str, data: Path | None) -> Haystack:
    """Return the text that needles are hidden in.

    Args:
        source: ``bundled``; ``essays``: Paul Graham's, from ``essays/*.txt`` of the data or the Hub; or a file.
        data: Where data lie; None: the Hub's cache alone.

    Raises:
        LucidError: It cannot be read, or has no words.
    """
    if source == BUNDLED:
        text = (Path(__file__).parent / "haystack.txt").read_text(encoding="utf-8")
    elif source == ESSAYS:
        text = _essays(data)
    else:
        text = _read(Path(source))
    words = tuple(re.sub(r"\s+", " ", text).split())
    if not words:
        raise LucidError(f"The text in {source} has no words to hide needles in.")
    return Haystack(source if source in (BUNDLED, ESSAYS) else Path(source).name, words)


def _essays(data: Path | None) -> str:
    if data is not None and (paths := sorted((data / "essays").glob("*.txt"))):
        return " ".join(map(_read, paths))
    import datasets

    try:
        return " ".join(datasets.load_dataset(_ESSAYS_ON_HUB, split="train")["text"])
    except Exception as error:
        raise missing_data("RULER's essays", "essays/*.txt", _ESSAYS_ON_HUB, "ruler", error) from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LucidError(f"The text {path} cannot be read: {error}.") from error
