"""Documents of published data sets and the texts that needles are hidden in: from a directory, else from the Hub.

The directory of ``--data`` holds the published rows, a JSON object a line:

    longbench/2wikimqa.jsonl …          context, question, answers, all_classes
    babilong/64k/qa1.jsonl …            input, question, target
    scrolls/qasper/validation.jsonl …   id, pid, input, output
    essays/*.txt, squad/dev-v2.0.json, nltk_data/   for RULER
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.suites import SuiteTask

BUNDLED, ESSAYS = "bundled", "essays"
_ESSAYS_ON_HUB = "baber/paul_graham_essays"
Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Where a task's documents are published, and where they are in a directory of data."""

    file: str  # relative to the directory
    hub: str  # the data set's name on the Hub
    config: str  # its configuration there; of SCROLLS the name of its archive
    split: str
    fields: tuple[str, ...]  # that each row must have


def source_of(task: SuiteTask) -> Source:
    """Return where the documents of a task of LongBench, BABILong or SCROLLS are."""
    name = task.task.split("_", 1)[1]
    if task.suite == "longbench":
        fields = ("context", "question", "answers", "all_classes")
        return Source(f"longbench/{name}.jsonl", "Xnhyacinth/LongBench", name, "test", fields)
    if task.suite == "babilong":
        file = f"babilong/{task.length}/{name}.jsonl"
        return Source(file, "RMT-team/babilong-1k-samples", str(task.length), name, ("input", "question", "target"))
    fields = ("id", "pid", "input", "output")
    return Source(f"scrolls/{name}/validation.jsonl", "tau/scrolls", name, "validation", fields)


def read_documents(task: SuiteTask, data: Path | None) -> list[Row]:
    """Return the documents of a task of LongBench, BABILong or SCROLLS in their order."""
    source = source_of(task)
    path = None if data is None else data / source.file
    if path is not None and path.is_file():
        origin = str(path)
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            raise LucidError(f"{path} cannot be read: {error}.") from error
    else:
        origin, rows = source.hub, _fetch(task, source)
    if not rows:
        raise LucidError(f"{origin} has no documents.")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or (missing := [name for name in source.fields if name not in row]):
            lacks = "is not a JSON object" if not isinstance(row, dict) else f"has no {missing[0]!r}"
            raise LucidError(f"Document {number} of {origin} {lacks}, which {task.task} reads.")
    return rows


def _fetch(task: SuiteTask, source: Source) -> list[Row]:
    import datasets

    try:
        if task.suite == "scrolls":
            archive = f"https://huggingface.co/datasets/{source.hub}/resolve/main/{source.config}.zip"
            files = {source.split: f"zip://{source.config}/{source.split}.jsonl::{archive}"}
            found = datasets.load_dataset("json", data_files=files, split=source.split)
        else:
            found = datasets.load_dataset(source.hub, name=source.config, split=source.split)
    except Exception as error:  # of many kinds, from several libraries
        raise missing_data(f"The documents of {task.name}", source.file, source.hub, task.suite, error) from error
    return [dict(row) for row in found]


def missing_data(what: str, place: str, origin: str, suite: str, cause: Exception) -> LucidError:
    """Return the error for data that are missing and cannot be downloaded."""
    why = " ".join(str(cause).split())[:120]
    return LucidError(
        f"{what} are neither at {place} in the directory of --data nor available from {origin} ({why}). Where there is "
        f"network, run: python examples/fetch_suites.py {suite} --output DIR; then add --data DIR."
    )


@dataclass(frozen=True)
class Haystack:
    """A text that needles are hidden in."""

    source: str  # "bundled", "essays", or the name of the user's file
    words: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Return plain data for JSON, with a digest of the words."""
        digest = hashlib.sha256(" ".join(self.words).encode()).hexdigest()
        return {"source": self.source, "words": len(self.words), "sha256": digest}

    def at_least(self, words: int) -> list[str]:
        """Return its words, repeated as often as needed for so many, as RULER's own script does with its essays."""
        return list(self.words) * max(1, -(-words // len(self.words)))


def open_haystack(source: str, data: Path | None) -> Haystack:
    """Return the text that needles are hidden in."""
    if source == ESSAYS:
        text = _essays(data)
    else:
        path = Path(__file__).parent / "haystack.txt" if source == BUNDLED else Path(source)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise LucidError(f"The text {path} cannot be read: {error}.") from error
    words = tuple(re.sub(r"\s+", " ", text).split())
    if not words:
        raise LucidError(f"The text in {source} has no words to hide needles in.")
    return Haystack(source if source in (BUNDLED, ESSAYS) else Path(source).name, words)


def _essays(data: Path | None) -> str:
    if data is not None and (paths := sorted((data / "essays").glob("*.txt"))):
        return " ".join(path.read_text(encoding="utf-8-sig") for path in paths)
    import datasets

    try:
        return " ".join(datasets.load_dataset(_ESSAYS_ON_HUB, split="train")["text"])
    except Exception as error:  # of many kinds, from several libraries
        raise missing_data("RULER's essays", "essays/*.txt", _ESSAYS_ON_HUB, "ruler", error) from error
