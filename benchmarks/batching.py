"""Throughput of continuous batching at 1 to 16 rows: the demo model, and the medium model (hidden 1024, 8 layers).

There are two figures for every number of rows. `decode`: new tokens per second of all rows (median of the steps) while
that many requests run in a batcher of 16 rows, with contexts of unequal length around 512 tokens (demo: 96). `job`: the
time of 16 requests with prompts of unequal length, from the first prompt to the last token, in a batcher of that size.

Before anything is timed, the tokens of two batched requests are compared with those of lone generations.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import RESULTS, write_random_checkpoint, write_result

from lucid_deploy.batching import Batcher, Request, Token
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.generation.generate import Generation
from lucid_deploy.runtimes import Session, open_session

ROWS = (1, 2, 4, 8, 16)
MOST = max(ROWS)


def requests(session: Session[Any], context: int, new: int) -> list[Request]:
    """Return requests with prompts of unequal length, between half of the context and all of it."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(context // 2, context + 1, MOST)
    return [
        Request(rng.integers(session.config.vocab_size, size=length).tolist(), new, stop_at_eos=False)
        for length in lengths
    ]


def decode(session: Session[Any], rows: int, context: int, steps: int) -> dict[str, float]:
    """Time decode steps while ``rows`` requests run; return the median, and tokens per second of all rows."""
    batcher = Batcher(session, rows=MOST)
    for request in requests(session, context, steps + MOST + 16)[:rows]:
        batcher.submit(request)
    while batcher.waiting or batcher.generated_tokens < rows + 2:
        batcher.step()
    while len(batcher.step()) != rows:  # all run, none is in its prompt
        pass
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        events = batcher.step()
        seconds.append(time.perf_counter() - started)
        assert len(events) == rows
    median = statistics.median(seconds)
    return {"step_ms": 1e3 * median, "tokens_per_second": rows / median}


def job(session: Session[Any], rows: int, context: int, new: int) -> dict[str, float]:
    """Time all requests, from the first prompt to the last token."""
    batcher = Batcher(session, rows=rows)
    for request in requests(session, context, new):
        batcher.submit(request)
    started = time.perf_counter()
    while not batcher.idle:
        batcher.step()
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "tokens_per_second": batcher.generated_tokens / seconds}


def check(session: Session[Any], context: int, new: int) -> None:
    """Check that the first and last request give the same tokens in a batch as alone; SystemExit if not."""
    batcher, found = Batcher(session, rows=MOST), {}
    asked = requests(session, context, new)
    for request in asked:
        found[batcher.submit(request)] = []
    while not batcher.idle:
        for event in batcher.step():
            if isinstance(event, Token):
                found[event.request].append(event.token)
    for number in (0, MOST - 1):
        alone = list(Generation(session, asked[number].prompt_ids, new, stop_at_eos=False))
        if found[number] != alone:
            raise SystemExit(f"Request {number} gives other tokens in the batch than alone; nothing was timed.")


def measure(artifact: Path, context: int, new: int, steps: int, threads: int) -> dict[str, Any]:
    """Measure one artifact at every number of rows."""
    session = open_session(artifact, threads=threads)
    check(session, context, min(new, 8))
    result: dict[str, Any] = {}
    for rows in ROWS:
        result[str(rows)] = {
            "decode": decode(session, rows, context, steps),
            "job": job(session, rows, context // 4, new),
        }
        print(artifact.name, rows, result[str(rows)], flush=True)
    return result


@click.command()
@click.option("--artifacts", type=click.Path(path_type=Path), help="Where artifacts are kept and looked for.")
@click.option("--only", help="Measure this artifact alone, such as medium-static; other results stay.")
def main(artifacts: Path | None, only: str | None) -> None:
    """Measure batching, and write benchmarks/results/batching.json."""
    with tempfile.TemporaryDirectory() as scratch:
        root = artifacts or Path(scratch)
        path = RESULTS / "batching.json"
        results = json.loads(path.read_text())["results"] if only and path.is_file() else {}
        # The demo's matrices are too small for two threads, which would wait for each other.
        for shape, context, new, steps, threads in (("demo", 96, 24, 100, 1), ("medium", 512, 16, 12, 2)):
            for cache in ("static", "growing"):
                name = f"{shape}-{cache}"
                if only not in (None, name):
                    continue
                if not (root / name).is_dir():
                    source: Any = shape
                    if shape != "demo":
                        source = root / f"{shape}-checkpoint"
                        if not source.is_dir():
                            write_random_checkpoint(source, shape)
                    export(source, root / name, ExportOptions(cache=cache))
                results[name] = {"threads": threads, "rows": measure(root / name, context, new, steps, threads)}
        write_result("batching", {"results": results})


if __name__ == "__main__":
    main()
