"""Rounded caches (int8, fp8) in batches: every row gives what it gives alone, if it is fed the same way.

Such a cache must be copied in its stored form: numbers and scales, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lucid_deploy.artifact import Artifact
from lucid_deploy.batching import Batcher, Request, Token
from lucid_deploy.batching.request import Event
from lucid_deploy.batching.rows import make_rows
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.runtimes import Session, open_session
from lucid_deploy.runtimes.cache_rows import select_rows
from lucid_deploy.runtimes.session import Cache
from tests.batching.lone_runs import TEXTS
from tests.batching.test_batcher import alone, drain, prompt
from tests.runtimes.cache_cases import merge_caches

Exported = Callable[..., tuple[Path, Artifact]]
CASES = [
    ("float32", "int8", "growing", "onnxruntime"),
    ("float32", "int8", "static", "onnxruntime"),
    ("float16", "fp8", "growing", "torch"),
]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def session(request: pytest.FixtureRequest, exported: Exported) -> Session[Any]:
    dtype, cache_dtype, cache, runtime = request.param
    opened = open_session(exported(dtype, cache=cache, cache_dtype=cache_dtype)[1], runtime)
    assert (opened.dtype, opened.cache_dtype) == (dtype, cache_dtype)
    return opened


def stored(cache: Cache[Any]) -> list[np.ndarray]:
    """Return copies of the cache's stored tensors: numbers and scales."""
    arrays = [codes(x) for layer in cache.layers for x in layer]
    return [x[:, :, : cache.length].copy() for x in arrays]


def codes(tensor: Any) -> np.ndarray:
    """Return a runtime's tensor as a numpy array; E4M3, which numpy lacks, as bytes."""
    if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float8_e4m3fn:
        tensor = tensor.view(torch.uint8)
    found: np.ndarray = tensor if isinstance(tensor, np.ndarray) else tensor.numpy()
    return found


def equal(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def run(session: Session[Any], ids: np.ndarray) -> Cache[Any]:
    cache = session.empty_cache(1)
    session.prefill(ids[None, :-3], cache)
    for token in ids[-3:]:
        session.decode(np.array([[token]]), cache)
    return cache


def test_rows_are_copied_bit_by_bit(session: Session[Any]) -> None:
    """Merge, select and merge again: rounding a second time would change the scales."""
    caches = [run(session, ids) for ids in TEXTS[:3]]
    alone = [stored(cache) for cache in caches]
    merged = merge_caches(session, caches)
    for _ in range(3):
        merged = merge_caches(session, [select_rows(session, merged, [2, 0]), select_rows(session, merged, [1])])
        merged = select_rows(session, merged, [1, 2, 0])
    assert merged.mask.sum(axis=1).tolist() == [len(ids) for ids in TEXTS[:3]]
    for row, wanted in enumerate(alone):
        found = [x[row : row + 1][:, :, merged.mask[row]] for x in stored(merged)]
        assert equal(found, wanted)
    pool = make_rows(session, 3)
    for key, cache in enumerate(caches):
        pool.join(key, cache)
    pool.leave(1)
    assert all(equal(stored(pool.view(key)), alone[key]) for key in (0, 2))


@pytest.mark.parametrize("chunk", [None, 16])
def test_a_batcher_gives_the_tokens_of_lone_generations(session: Session[Any], chunk: int | None) -> None:
    """A prompt's chunks must not depend on prompts before it: tokens of one call see each other before rounding."""
    rng = np.random.default_rng(0)
    requests = [
        Request(
            prompt(int(rng.integers(1, 90)), seed),
            int(rng.integers(1, 25)),
            Sampling() if seed % 2 else Sampling(1.3, 20, 0.9, seed),
        )
        for seed in range(9)
    ]
    batcher = Batcher(session, rows=4, prefill_chunk=chunk)
    numbers = [batcher.submit(request) for request in requests]
    tokens, ends = drain(batcher)
    for number, request in zip(numbers, requests, strict=True):
        assert (tokens.get(number, []), ends[number].reason) == alone(session, request, chunk)


def test_stored_prefixes_change_no_token_if_chunks_end_at_block_borders(
    exported: Exported, quantized: Exported
) -> None:
    for artifact in (exported("float32", cache="static", cache_dtype="int8")[1], quantized("int8")[1]):
        batcher = Batcher(open_session(artifact), rows=2, prefill_chunk=32, prefix_tokens=500)
        found = []
        for _ in range(2):
            batcher.submit(Request(prompt(150), 9, stop_at_eos=False, top_logprobs=3))
            found.append([replace(event, request=0, reused=0) for event in events(batcher) if isinstance(event, Token)])
        assert found[0] == found[1] and batcher.prompt_tokens_reused == 128


def events(batcher: Batcher) -> Iterator[Event]:
    while not batcher.idle:
        yield from batcher.step()


def test_prompts_with_rounded_caches_or_inputs_are_cut_as_if_alone(
    exported: Exported, quantized: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds for inputs in int8 too: another order of sums may round an input to the next number."""
    for artifact, wanted in (
        (exported("float32", cache="static")[1], [3, 5, 19, 1, 7]),
        (exported("float32", cache="static", cache_dtype="int8")[1], [3, 5, 16, 4, 7]),
        (quantized("int8")[1], [3, 5, 16, 4, 7]),
        (quantized("int4", activations="float")[1], [3, 5, 19, 1, 7]),
    ):
        session = open_session(artifact)
        lengths, prefill = [], session.prefill

        def noted(ids: np.ndarray, *rest: Any, prefill: Any = prefill, lengths: list[int] = lengths) -> np.ndarray:
            lengths.append(ids.shape[1])
            found: np.ndarray = prefill(ids, *rest)
            return found

        monkeypatch.setattr(session, "prefill", noted)
        batcher = Batcher(session, rows=4, prefill_chunk=16)
        batcher.submit(Request(prompt(3), 9, stop_at_eos=False))
        batcher.step()  # now a row decodes; before that, chunks may be longer
        for length in (5, 20, 7):
            batcher.submit(Request(prompt(length), 2, stop_at_eos=False))
        drain(batcher)
        assert lengths == wanted
