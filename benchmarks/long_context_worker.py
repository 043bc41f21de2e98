"""The measurements of long_context.py, for a process that imports no torch, like one that serves an artifact."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from lucid_deploy.bench.machine import reset_peak, resident_bytes
from lucid_deploy.cache.storage import decoded_layout
from lucid_deploy.runtimes import open_session


def prefill(artifact: str, length: int, chunk: int | None, kernels: str = "auto") -> dict[str, Any]:
    """Prefill ``length`` tokens, decode 8; return the prefill's seconds, logits and last rows of Y, and memory."""
    session = open_session(artifact, kernels=kernels)
    ids = np.random.default_rng(0).integers(0, session.config.vocab_size, (1, length))
    cache = session.empty_cache(1)
    reset_peak()
    idle = resident_bytes("VmRSS")
    started = time.perf_counter()
    logits = session.prefill(ids, cache, chunk=chunk)
    seconds = time.perf_counter() - started
    peak = resident_bytes("VmHWM")
    rows = [y[0, :, -64:].ravel().tolist() for _, y in session.layer_arrays(cache)]
    reset_peak()
    for _ in range(8):
        session.decode(np.ones((1, 1), dtype=np.int64), cache)
    return {
        "seconds": seconds,
        "idle": idle,
        "peak": peak,
        "peak_decoding": resident_bytes("VmHWM"),
        "logits": logits.ravel().tolist(),
        "rows": rows,
    }


def decode(artifact: str, context: int, steps: int = 8) -> dict[str, Any]:
    """Decode from a random cache up to ``context`` tokens; return seconds per step and the process's memory."""
    session, rng = open_session(artifact), np.random.default_rng(0)
    filled = context - steps - 1
    layers = [
        tuple(rng.standard_normal(each.batch_shape(1, filled), dtype=np.float32) for each in decoded_layout(layer))
        for layer in session.layout
    ]
    cache = session.cache_from_arrays(layers, np.ones((1, filled), dtype=bool))
    del layers
    token = np.ones((1, 1), dtype=np.int64)
    idle = resident_bytes("VmRSS")
    reset_peak()
    session.decode(token, cache)
    started = time.perf_counter()
    for _ in range(steps):
        session.decode(token, cache)
    return {
        "seconds": (time.perf_counter() - started) / steps,
        "idle": idle,
        "resident": resident_bytes("VmRSS"),
        "peak": resident_bytes("VmHWM"),
    }
