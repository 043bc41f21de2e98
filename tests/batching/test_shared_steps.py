"""A step that runs rows and a part of a prompt together gives, bit by bit, the results of two separate runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.batching import Batcher, Finished, Request
from lucid_deploy.batching.rows import StaticRows
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.runtimes import Session, open_session
from lucid_deploy.runtimes.graph_sessions import StaticSession
from lucid_deploy.runtimes.passes.shared_step import share_step
from tests.batching.draining import drain
from tests.batching.test_batcher import alone, prompt

SIZES = {"head_dim": 64, "intermediate_size": 128, "num_hidden_layers": 3, "lucid_layers": [0]}
HEADS = {"int8": {}, "int4": {"tie_word_embeddings": True, "attention_bias": True}}
CASES = [("int8", "auto"), ("int4", "auto"), ("int8", "int8"), ("int8", "float16")]  # weights, cache


@pytest.fixture(params=CASES, ids="-".join)
def session(request: pytest.FixtureRequest, quantized: Callable[..., Any], built_library: Path) -> Session[Any]:
    scheme, cache_dtype = request.param
    more = {"frequent_rows": 40} if scheme == "int4" else {}
    changes = {**SIZES, **HEADS[scheme]}
    opened = open_session(quantized(scheme, cache="static", cache_dtype=cache_dtype, changes=changes, **more)[1])
    assert isinstance(opened, StaticSession) and opened.shares_steps
    return opened


@pytest.mark.parametrize(("rows", "part", "past"), [(1, 1, 0), (3, 33, 0), (4, 16, 129), (2, 100, 31)])
def test_a_shared_run_gives_what_two_separate_runs_give(session: Any, rows: int, part: int, past: int) -> None:
    session.prepare_shared()
    rng = np.random.default_rng([rows, part])
    ids = rng.integers(97, size=(1, past + part))
    ids[:, ::3] = 11  # repeated keys
    found = []
    for is_shared in (False, True):
        pool, cache = StaticRows(session, rows), session.empty_cache(1)
        for key in range(rows):
            own = session.empty_cache(1)
            session.prefill(np.array([prompt(20 + 40 * key)]), own)
            pool.join(key, own)
        if past:
            session.prefill(ids[:, :past], cache)
        tokens = {key: [5 + key] for key in range(rows)}
        if is_shared:
            logits, last = pool.run_beside(tokens, ids[0, past:].tolist(), cache)
        else:
            logits, last = pool.run(tokens), session.prefill(ids[:, past:], cache)[0]
        caches = [cache, *(pool.view(key) for key in range(rows))]
        found.append([last, *logits.values(), *(x for each in caches for layer in each.layers for x in layer)])
    assert len(found[0]) == len(found[1]) and all(map(np.array_equal, *found))


def test_answers_are_those_of_lone_generations(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = []
    run = StaticSession.run_shared
    monkeypatch.setattr(StaticSession, "run_shared", lambda *given: shared.append(given[2].shape[1]) or run(*given))
    requests = [
        Request(
            prompt(10 + 23 * seed % 90, seed), 4 + seed % 9, Sampling(*((0.0,) if seed % 2 else (1.3, 20, 0.9, seed)))
        )
        for seed in range(12)
    ]
    batcher = Batcher(session, rows=4, prefill_chunk=16)
    numbers = [batcher.submit(request) for request in requests]
    tokens, ends = drain(batcher)
    for number, request in zip(numbers, requests, strict=True):
        chunk = 16 if session.cuts_matter else None
        assert (tokens.get(number, []), ends[number].reason) == alone(session, request, chunk)
    assert batcher.prompt_tokens_computed == sum(len(request.prompt_ids) for request in requests)
    assert len(shared) > 10 and max(shared) == (16 if session.cuts_matter else 24)


def test_a_stored_prefix_changes_no_token_with_many_rows(session: Any) -> None:
    """With 11 rows and a rounded cache, prompts and stored prefixes are cut at multiples of 64."""
    chunk, known = (64, 64) if session.cuts_matter else (None, 96)
    request = Request(prompt(150), 9, stop_at_eos=False)
    for prefix_tokens, reused in ((0, 0), (500, known)):
        batcher = Batcher(session, rows=11, prefill_chunk=32, prefix_tokens=prefix_tokens)
        batcher.submit(Request([*request.prompt_ids[:100], 5, 6], 9))
        drain(batcher)
        number = batcher.submit(request)
        tokens, _ = drain(batcher)
        assert tokens[number] == alone(session, request, chunk)[0] and batcher.prompt_tokens_reused == reused


def test_a_prompt_that_fails_does_not_end_other_rows(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise LucidError("no memory for it")

    batcher = Batcher(session, rows=2, prefill_chunk=16)
    first = Request(prompt(9), 20, stop_at_eos=False)
    number = batcher.submit(first)
    batcher.step()
    monkeypatch.setattr(StaticSession, "run_shared", fails)
    other = batcher.submit(Request(prompt(40), 5))
    tokens, ends = drain(batcher)
    assert ends[other] == Finished(other, "error", "no memory for it", 0)
    assert len(tokens[number]) == 18 and ends[number].reason == "length"


def test_graphs_of_different_models_cannot_be_joined(session: Any) -> None:
    """Layers of the two graphs use the common weights in different orders."""
    prefill, decode = (session._changed(stage)[0] for stage in ("prefill", "decode"))
    swapped = onnx.ModelProto()
    swapped.CopyFrom(decode)
    for node in swapped.graph.node:
        node.input[:] = [
            name.replace("layers.0.", "layers.9.").replace("layers.2.", "layers.0.").replace("layers.9.", "layers.2.")
            if name.startswith("model.")
            else name
            for name in node.input
        ]
    with pytest.raises(CheckFailed, match="different orders"):
        share_step(prefill, swapped)


@pytest.mark.parametrize("changes", [{"head_dim": 40}, {"layer_types": ["full_attention"] * 2 + ["sliding_attention"]}])
def test_no_step_is_shared_where_the_order_of_sums_varies(
    changes: dict[str, Any], quantized: Callable[..., tuple[Path, Artifact]], built_library: Path
) -> None:
    window = {"sliding_window": 9} if "layer_types" in changes else {}
    session = open_session(quantized("int8", cache="static", changes={**SIZES, **changes, **window})[1])
    assert session.cuts_matter and not Batcher(session)._shares_steps


def test_no_step_is_shared_without_the_library_of_kernels(quantized: Callable[..., tuple[Path, Artifact]]) -> None:
    assert not Batcher(open_session(quantized("int8", cache="static")[1]))._shares_steps
