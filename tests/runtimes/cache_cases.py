"""Helpers that fill, merge and compare sessions' caches."""

from __future__ import annotations

from typing import Any

import numpy as np

from lucid_deploy.parity.metrics import position_errors
from lucid_deploy.parity.record import TensorId
from lucid_deploy.runtimes import Session
from lucid_deploy.runtimes.cache_rows import cache_of_rows, row_layers
from lucid_deploy.runtimes.session import Cache

CASES = [("growing", "onnxruntime"), ("static", "onnxruntime"), ("growing", "torch")]
IDS = np.random.default_rng(5).integers(0, 97, 70)


def stored(session: Session[Any], cache: Cache[Any]) -> list[np.ndarray]:
    return [array.copy() for layer in session.layer_arrays(cache) for array in layer]


def run(session: Session[Any], ids: np.ndarray, cache: Cache[Any] | None = None, decode: int = 0) -> Cache[Any]:
    """Prefill ``ids``, but decode the last ``decode`` of them one by one; return the cache."""
    cache = session.empty_cache(1) if cache is None else cache
    session.prefill(ids[None, : len(ids) - decode], cache)
    for token in ids[len(ids) - decode :]:
        session.decode(np.array([[token]]), cache)
    return cache


def merge_caches(session: Session[Any], caches: list[Cache[Any]]) -> Cache[Any]:
    return cache_of_rows(session, [row for cache in caches for row in row_layers(session, cache, range(cache.batch))])


def within_the_gate(got: list[np.ndarray], exact: list[np.ndarray], gates: dict[TensorId, Any]) -> None:
    for index, (ours, wanted) in enumerate(zip(got, exact, strict=True)):
        tensor = TensorId(index // 2, index % 2)
        rows = [x.transpose(0, 2, 1, 3).reshape(1, x.shape[2], -1) for x in (ours, wanted)]
        # Both arrays are rounded; each may be as far off as the gate allows.
        assert (position_errors(*rows, tensor.accumulated) <= 2 * gates[tensor].limit).all()
