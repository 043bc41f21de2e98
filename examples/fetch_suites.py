"""Fetch the data of evaluation suites into a directory that ``lucid-deploy eval --data DIR`` reads without network.

    python examples/fetch_suites.py ruler longbench --output suites-data

Needs the extra ``eval`` and network. A file that is there already is kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lucid_deploy.evaluation.suites import BABILONG_LENGTHS, SUITES, SuiteTask, plan
from lucid_deploy.evaluation.suites.documents import source_of
from lucid_deploy.evaluation.suites.ruler import SQUAD, SQUAD_AT

ESSAYS = "baber/paul_graham_essays"


def main() -> None:
    """Fetch what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("suites", nargs="+", choices=sorted(SUITES), help="Suites to fetch the data of.")
    parser.add_argument("--output", type=Path, required=True, help="The directory, made if it is missing.")
    parser.add_argument("--lengths", nargs="*", default=[], choices=BABILONG_LENGTHS, help="Of BABILong.")
    options = parser.parse_args()
    lengths = [1024 * int(length.removesuffix("k")) for length in options.lengths]
    for suite in options.suites:
        if suite in ("ruler", "mniah"):
            ruler(options.output)
        else:
            for task in plan(suite, lengths if suite == "babilong" else ()):
                recorded(task, options.output)


def ruler(output: Path) -> None:
    """Fetch the essays, SQuAD 2.0 and NLTK's tables for sentences."""
    from datasets import load_dataset

    def essays(path: Path) -> None:
        path.write_text("\n\n".join(load_dataset(ESSAYS, split="train")["text"]), encoding="utf-8")

    def squad(path: Path) -> None:
        with urllib.request.urlopen(SQUAD_AT, timeout=60) as answer, path.open("wb") as file:
            shutil.copyfileobj(answer, file)

    once(output / "essays" / "all.txt", essays)
    once(output / SQUAD, squad)
    tables = output / "nltk_data"
    if not (tables / "tokenizers" / "punkt_tab").is_dir():
        import nltk

        nltk.download("punkt_tab", download_dir=str(tables), raise_on_error=True)
    print(tables)


def recorded(task: SuiteTask, output: Path) -> None:
    """Fetch the documents of one task, as published."""
    from datasets import load_dataset

    source = source_of(task)
    if task.suite == "scrolls":
        archive = f"https://huggingface.co/datasets/{source.hub}/resolve/main/{source.config}.zip"
        files = {source.split: f"zip://{source.config}/{source.split}.jsonl::{archive}"}
        once(output / source.file, lambda path: lines(path, load_dataset("json", data_files=files, split=source.split)))
        return
    once(output / source.file, lambda path: lines(path, load_dataset(source.hub, source.config, split=source.split)))


def lines(path: Path, rows: Iterable[Any]) -> None:
    """Write rows, a JSON object a line."""
    path.write_text("".join(json.dumps(dict(row)) + "\n" for row in rows), encoding="utf-8")


def once(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file under another name and then give it its own, unless it is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        write(part)
        part.rename(path)
    print(path)


if __name__ == "__main__":
    main()
