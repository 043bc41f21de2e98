"""How wrong an artifact's logits are at each position of a long text, against PyTorch in float64.

Errors could pile up along a text: Y of every token is computed from the rounded Y of those before it. The text is
the bundled task's lists one after the other, whose keys resemble each other, so that the solve has work to do. Each
artifact runs it in chunks; the float64 model does too, once. The error at a position is the root mean square of the
differences of logits over the vocabulary, as a share of that of the exact logits. The text repeats itself and is longer
than texts in training, so it shows how rounding errors grow and not how good answers are.

    python benchmarks/position_error.py --length 32768

Another checkpoint must know the words of the bundled task.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from common import write_result

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.demo import recall
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.export.companions import read_tokenizer
from lucid_deploy.model.checkpoint import DEMO, Checkpoint, load_model, resolve
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.session import Array, Session
from lucid_deploy.runtimes.torch.session import TorchSession

ARTIFACTS = {
    "float32": ExportOptions(logits="all"),
    "float16": ExportOptions("float16", logits="all"),
    "int8 cache": ExportOptions(logits="all", cache_dtype="int8"),
}


def text_of(tokenizer: TextTokenizer, length: int) -> list[int]:
    """Return ``length`` token ids: lists of the bundled task, one after the other."""
    ids: list[int] = []
    for example in recall.held_out(length // 20 + 1):
        ids += tokenizer.encode(f"{example.prompt} {example.answer}", add_special_tokens=not ids)
    if len(ids) < length:
        raise click.UsageError(f"The text has {len(ids)} tokens only.")
    return ids[:length]


def logits_in_chunks(session: Session[Any], ids: list[int], chunk: int) -> Iterator[Array]:
    """Yield the logits of a text, ``(chunk, vocab)`` at a time."""
    cache = session.empty_cache(1)
    for start in range(0, len(ids), chunk):
        yield np.asarray(session.prefill_all(np.array([ids[start : start + chunk]]), cache)[0], dtype=np.float64)


def errors(
    exact: Session[Any], others: dict[str, Session[Any]], ids: list[int], chunk: int, minutes: float | None = None
) -> dict[str, Array]:
    """Return each session's relative error at each position, ``(N,)``; ``minutes`` limit how many are computed."""
    found: dict[str, list[Array]] = {name: [] for name in others}
    runs = {name: logits_in_chunks(session, ids, chunk) for name, session in others.items()}
    begun, done = time.monotonic(), 0
    for right in logits_in_chunks(exact, ids, chunk):
        size = np.sqrt(np.square(right).mean(-1))  # (chunk,)
        for name, run in runs.items():
            found[name].append(np.sqrt(np.square(next(run) - right).mean(-1)) / size)
        done += len(right)
        seconds = time.monotonic() - begun
        click.echo(f"{done} of {len(ids)} tokens, {seconds:.0f} s", err=True)
        if minutes is not None and seconds >= 60 * minutes:
            break
    return {name: np.concatenate(parts) for name, parts in found.items()}


def summary(row: Array, bins: int) -> list[dict[str, float]]:
    """Return median, 99th percentile and largest error in ``bins`` parts of the text, each longer than the last."""
    edges = np.unique(np.geomspace(1, len(row), bins + 1).astype(int))
    return [
        {
            "from": int(a),
            "to": int(b),
            "median": float(np.median(row[a:b])),
            "p99": float(np.quantile(row[a:b], 0.99)),
            "largest": float(row[a:b].max()),
        }
        for a, b in itertools.pairwise(edges)
    ]


@click.command(help=__doc__)
@click.option("--checkpoint", default=DEMO, show_default=True, help="Checkpoint to export.")
@click.option("--length", default=32768, show_default=True, help="Tokens of the text.")
@click.option("--chunk", default=64, show_default=True, help="Tokens that run at once, seeing each other unrounded.")
@click.option("--bins", default=15, show_default=True, help="Parts of the text, each longer than the last.")
@click.option("--minutes", type=float, help="Stop after so many minutes, with the positions reached.")
@click.option("--write/--no-write", default=True, help="Write benchmarks/results/position_error.json.")
def main(checkpoint: str, length: int, chunk: int, bins: int, minutes: float | None, write: bool) -> None:
    """Export, run and compare."""
    source = resolve(checkpoint)
    ids = text_of(read_tokenizer(source), length)
    exact = TorchSession(load_model(Checkpoint(source), torch.float64), allow_extrapolation=True)
    with tempfile.TemporaryDirectory() as scratch:
        sessions = {}
        for name, options in ARTIFACTS.items():
            artifact = export(checkpoint, Path(scratch) / name.replace(" ", "-"), options)
            sessions[name] = open_session(artifact, allow_extrapolation=True)
        found = errors(exact, sessions, ids, chunk, minutes)
    length = min(map(len, found.values()))
    parts = {name: summary(row, bins) for name, row in found.items()}
    for name, rows in parts.items():
        first, last = rows[0], rows[-1]
        print(f"{name}: median {first['median']:.1e} at the beginning, {last['median']:.1e} in the last part")
    if write:
        write_result("position_error", {"checkpoint": checkpoint, "length": length, "chunk": chunk, "parts": parts})


if __name__ == "__main__":
    main()
