"""Memory and decode time of caches in float32, float16 and int8 on the CPU, growing and static.

2 layers, 8 heads on 2 key/value heads of width 64, float32 weights and arithmetic. The contents are random: they change
nothing in what a step costs.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from common import write_random_checkpoint, write_result

from lucid_deploy.cache_types import bytes_per_token
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.runtime import Cache, Session, open_session

TYPES = {"float32": "auto", "float16": "float16", "int8": "int8"}


def filled_cache(session: Session, rows: list[tuple[np.ndarray, np.ndarray]], length: int):
    """Return a cache that holds the first rows."""
    layers = [(k[:, :, :length], y[:, :, :length]) for k, y in rows]
    return session.cache_from_arrays(layers, np.ones((1, length), dtype=bool))


def measure(session: Session, rows: list[tuple[np.ndarray, np.ndarray]], context: int, steps: int) -> dict[str, float]:
    """Decode up to a context; return milliseconds of the median step and the quickest, and the cache's bytes."""
    cache = filled_cache(session, rows, context - steps - 2)
    token = np.ones((1, 1), dtype=np.int64)
    for _ in range(2):
        session.decode(token, cache)
    times = []
    for _ in range(steps):
        started = time.perf_counter()
        session.decode(token, cache)
        times.append(1e3 * (time.perf_counter() - started))
    return {"median_ms": statistics.median(times), "best_ms": min(times), "cache_bytes": held_bytes(cache)}


def held_bytes(cache: Cache) -> int:
    """Return the bytes of a cache's tensors: numpy's with a static cache, onnxruntime's with a growing one."""
    tensors = [tensor for layer in cache.layers for tensor in layer]
    return sum(x.nbytes if isinstance(x, np.ndarray) else x.tensor_size_in_bytes() for x in tensors)


def against_float32(session: Session, whole: Session, rows: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return the relative difference of the logits of one step, so that no figure comes from a broken cache."""
    token = np.ones((1, 1), dtype=np.int64)
    found, wanted = (one.decode(token, filled_cache(one, rows, 500)) for one in (session, whole))
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@click.command()
@click.option("--contexts", default="2048,8192", show_default=True, help="Tokens of context to decode at.")
@click.option("--steps", default=40, show_default=True, help="Steps to take the median of.")
def main(contexts: str, steps: int) -> None:
    """Measure caches of each type."""
    lengths = [int(length) for length in contexts.split(",")]
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = write_random_checkpoint(Path(scratch) / "checkpoint", "long")
        artifacts = {
            (cache, name): export(
                checkpoint, Path(scratch) / f"{cache}-{name}", ExportOptions(cache=cache, cache_dtype=kind)
            )
            for cache in ("growing", "static")
            for name, kind in TYPES.items()
        }
        config = artifacts["growing", "float32"].config
        shape = (1, config.num_key_value_heads, max(lengths), config.head_dim)
        rng = np.random.default_rng(0)
        rows = [
            (rng.standard_normal(shape, dtype=np.float32), rng.standard_normal(shape, dtype=np.float32))
            for _ in range(config.num_hidden_layers)
        ]
        whole = open_session(artifacts["growing", "float32"])
        for (cache, name), artifact in artifacts.items():
            session = open_session(artifact)
            difference = against_float32(session, whole, rows)
            assert difference < 0.05, f"{cache} {name}: logits differ by {difference:.2g}"
            for context in lengths:
                row = {
                    "cache": cache,
                    "type": name,
                    "context": context,
                    "bytes_per_token": bytes_per_token(config, name),
                }
                found.append({**row, **measure(session, rows, context, steps), "logits_against_float32": difference})
                print(json.dumps(found[-1]))
    write_result("cache_types", {"steps": steps, "rows": found})


if __name__ == "__main__":
    main()
