"""Memory and decode time of caches in float32, float16 and int8 on the CPU, growing and static.

The model has 2 layers, 8 heads on 2 key/value heads of width 64, and float32 weights and arithmetic. It runs with the
library of kernels, built if need be, and with the functions of the graph. All take turns, a few steps at a time. Caches
hold random values, which do not change what a step costs.
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

from lucid_deploy.cache.layout import bytes_per_token
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.model.description import describe, layout_of
from lucid_deploy.plugins.hosts.onnxruntime.build import build_ort_library, kernels_name
from lucid_deploy.runtimes import Session, open_session
from lucid_deploy.runtimes.session import Cache

TYPES = {"float32": "auto", "float16": "float16", "int8": "int8"}


def filled_cache(session: Session, rows: list[tuple[np.ndarray, np.ndarray]], length: int):
    """Return a cache of the first ``length`` tokens of ``rows``, which has K and Y of each layer."""
    layers = [(k[:, :, :length], y[:, :, :length]) for k, y in rows]
    return session.cache_from_arrays(layers, np.ones((1, length), dtype=bool))


class Decoding:
    """A session that decodes up to a context, some steps at a time."""

    def __init__(self, session: Session, rows: list[tuple[np.ndarray, np.ndarray]], context: int, steps: int) -> None:
        self.session, self.token = session, np.ones((1, 1), dtype=np.int64)
        self.cache = filled_cache(session, rows, context - steps - 2)
        self.times: list[float] = []
        for _ in range(2):
            session.decode(self.token, self.cache)

    def advance(self, steps: int) -> None:
        """Time ``steps`` decode steps after an untimed one, which finds another session's data in processor caches."""
        for step in range(steps + 1):
            started = time.perf_counter()
            self.session.decode(self.token, self.cache)
            if step > 0:
                self.times.append(1e3 * (time.perf_counter() - started))


def held_bytes(cache: Cache) -> int:
    """Return the bytes of a cache's tensors: numpy's with a static cache, onnxruntime's with a growing one."""
    tensors = [tensor for layer in cache.layers for tensor in layer]
    return sum(x.nbytes if isinstance(x, np.ndarray) else x.tensor_size_in_bytes() for x in tensors)


def against_float32(session: Session, whole: Session, rows: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return the relative difference of one step's logits from ``whole``'s; a large one would show a broken cache."""
    token = np.ones((1, 1), dtype=np.int64)
    found, wanted = (one.decode(token, filled_cache(one, rows, 500)) for one in (session, whole))
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@click.command()
@click.option("--contexts", default="2048,8192", show_default=True, help="Tokens of context to decode at.")
@click.option("--steps", default=8, show_default=True, help="Steps to take in a turn.")
@click.option("--turns", default=8, show_default=True, help="Turns that each kind of cache has.")
def main(contexts: str, steps: int, turns: int) -> None:
    """Measure caches of each type."""
    lengths = [int(length) for length in contexts.split(",")]
    instructions = kernels_name(build_ort_library()[0])
    found: list[dict[str, object]] = []
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
        sessions = {
            (kernels, *key): open_session(artifact, kernels=kernels)
            for kernels in ("functions", "library")
            for key, artifact in artifacts.items()
        }
        differences = {}
        for key, session in sessions.items():
            differences[key] = against_float32(session, sessions["functions", "growing", "float32"], rows)
            assert differences[key] < 0.05, f"{key}: logits differ by {differences[key]:.2g}"
            assert session.reads_stored_cache == (key[0] == "library" or key[2] == "float32"), key
        for context in lengths:
            decoding = {key: Decoding(x, rows, context, turns * (steps + 1)) for key, x in sessions.items()}
            for _ in range(turns):
                for one in decoding.values():
                    one.advance(steps)
            for (kernels, cache, name), one in decoding.items():
                row = {
                    "kernels": kernels,
                    "cache": cache,
                    "type": name,
                    "context": context,
                    "bytes_per_token": bytes_per_token(layout_of(describe(config, name))),
                    "median_ms": statistics.median(one.times),
                    "best_ms": min(one.times),
                    "cache_bytes": held_bytes(one.cache),
                    "logits_against_float32": differences[kernels, cache, name],
                }
                found.append(row)
                print(json.dumps(row))
    write_result("cache_types", {"instructions": instructions, "steps": steps * turns, "rows": found})


if __name__ == "__main__":
    main()
