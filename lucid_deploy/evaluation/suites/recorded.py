"""Documents of data sets that were recorded: from a directory, else as lm_eval has them from the Hub or its cache.

The directory holds the published rows, a JSON object a line:

    longbench/2wikimqa.jsonl …          context, question, answers, all_classes
    babilong/64k/qa1.jsonl …            input, question, target
    scrolls/qasper/validation.jsonl …   id, pid, input, output
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.suites.missing import missing_data
from lucid_deploy.evaluation.suites.settings import SuiteTask

Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Where a task's documents are published, and where they lie in a directory of data.

    Attributes:
        file: Relative to the directory.
        hub: The data set's name on the Hub.
        config: Its configuration there; of SCROLLS the name of its archive.
        split: The split there.
        fields: What each row must have.
    """

    file: str
    hub: str
    config: str
    split: str
    fields: tuple[str, ...]


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
    """Return a task's documents in their order.

    Args:
        task: Of LongBench, BABILong or SCROLLS.
        data: A directory of data; None: the Hub or its cache alone.

    Raises:
        LucidError: They are neither in the directory nor to be had from the Hub, or are not in the published form.
    """
    source = source_of(task)
    path = None if data is None else data / source.file
    if path is not None and path.is_file():
        rows, origin = _read(path), str(path)
    else:
        rows, origin = _fetch(task, source), source.hub
    if not rows:
        raise LucidError(f"{origin} has no documents.")
    for number, row in enumerate(rows, 1):
        if missing := [name for name in source.fields if name not in row]:
            raise LucidError(f"Document {number} of {origin} has no {missing[0]!r}, which {task.task} reads.")
    return rows


def _read(path: Path) -> list[Row]:
    rows = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    rows.append(json.loads(line))
                    if not isinstance(rows[-1], dict):
                        raise LucidError(f"Line {number} of {path} is not a JSON object.")
    except (OSError, ValueError) as error:
        raise LucidError(f"{path} cannot be read: {error}.") from error
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
    except Exception as error:
        raise missing_data(f"The documents of {task.name}", source.file, source.hub, task.suite, error) from error
    return [dict(row) for row in found]
