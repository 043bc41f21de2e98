"""OpenVINO with a static cache of opset 23: float64's logits, in buffers that stay where they are."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact
from lucid_deploy.batching import Batcher, Request
from lucid_deploy.cli import main
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.generate import Generation
from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.runtimes import Session, open_session
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.batching.draining import drain
from tests.conftest import MIXED

openvino = pytest.importorskip("openvino", reason='needs OpenVINO: pip install -e ".[openvino]"')
Exported = Callable[..., tuple[Path, Artifact]]


@pytest.fixture
def small(exported: Exported) -> tuple[Path, Artifact]:
    """A LUCID layer, one of standard attention and one over a window, which keeps a ring."""
    return exported(inline=True, cache="static", opset=23, **MIXED)


@pytest.fixture
def static(small: tuple[Path, Artifact]) -> Session[Any]:
    return open_session(small[1], "openvino", threads=1)


def close(got: np.ndarray, wanted: np.ndarray, baseline: float) -> None:
    """Four times the error that PyTorch's float32 has, as ``verify`` gives a runtime."""
    assert np.linalg.norm(got - wanted) <= 4 * baseline


def test_it_agrees_with_float64(small: tuple[Path, Artifact], static: Session[Any]) -> None:
    """Left padding, a buffer that is used up, prefill after decode, a row that waits."""
    exact, plain = (
        TorchSession(load_model(small[0], dtype, implementation="reference"))
        for dtype in (torch.float64, torch.float32)
    )
    sessions = exact, plain, static
    rng = np.random.default_rng(5)
    ids = rng.choice(rng.integers(0, 97, 9), (2, 290))  # repeated tokens: their keys resemble each other
    mask = np.ones(ids.shape, bool)
    mask[0, :6] = False
    mask[1, [245, 250]] = False  # waits
    caches = [session.empty_cache(2) for session in sessions]
    start, parts = 0, []
    for size in (240, *([1] * 20), 7, *([1] * 5)):
        part = slice(start, start + size)
        run = "decode" if size == 1 else "prefill"
        rows = mask[:, part].any(axis=1)
        parts.append(
            [
                getattr(session, run)(ids[:, part], cache, mask=mask[:, part])[rows]
                for session, cache in zip(sessions, caches, strict=True)
            ]
        )
        start += size
    baseline = max(np.linalg.norm(rounded - wanted) for wanted, rounded, _ in parts)
    for wanted, _, found in parts:
        close(found, wanted, baseline)
    for ours, theirs in zip(static.layer_arrays(caches[2]), exact.layer_arrays(caches[0]), strict=True):
        assert ours[0].shape == theirs[0].shape


def test_buffers_stay_where_they_are(static: Session[Any]) -> None:
    cache = static.empty_cache()
    static.prefill(np.array([[5, 9, 9, 40]]), cache)
    static.decode(np.array([[3]]), cache)
    fork = static.fork(cache)
    before = [[array.ctypes.data for array in layer] for layer in cache.layers]
    logits = static.decode(np.array([[7]]), cache)
    for token in (4, 8, 8):
        static.decode(np.array([[token]]), cache)
    assert [[array.ctypes.data for array in layer] for layer in cache.layers] == before
    np.testing.assert_array_equal(static.decode(np.array([[7]]), fork), logits)


@pytest.mark.parametrize("cache_dtype", ["float16", "int8"])
def test_other_types_are_stored_as_onnxruntime_stores_them(exported: Exported, cache_dtype: str) -> None:
    """Both runtimes round in float32, so each may be as far from float64 as PyTorch's float32 with the same cache."""
    checkpoint, artifact = exported(inline=True, cache="static", opset=23, cache_dtype=cache_dtype)
    sessions = [open_session(artifact, runtime, threads=1) for runtime in ("openvino", "onnxruntime")]
    sessions += [
        TorchSession(load_model(checkpoint, dtype, implementation="reference").store_cache_as(cache_dtype))
        for dtype in (torch.float32, torch.float64)
    ]
    found = []
    for session in sessions:
        cache = session.empty_cache()
        session.prefill(np.array([[5, 9, 9, 40, 5, 9]]), cache)
        found.append(np.concatenate([session.decode(np.array([[token]]), cache) for token in (9, 9, 40)], axis=1))
    assert sessions[0].cache_dtype == sessions[1].cache_dtype == cache_dtype
    close(found[0], found[1], 2 * float(np.linalg.norm(found[2] - found[3])))


def test_a_batch_answers_as_each_alone(static: Session[Any]) -> None:
    """Requests of other lengths share the buffers, which batching binds."""
    requests = [Request(prompt, 6, stop_at_eos=False) for prompt in ([5, 9, 9, 40], [7] * 11, [3, 4])]
    batcher = Batcher(static, 3)
    numbers = [batcher.submit(request) for request in requests]
    tokens, _ = drain(batcher)
    for number, request in zip(numbers, requests, strict=True):
        assert tokens[number] == list(Generation(static, request.prompt_ids, 6, request.sampling, stop_at_eos=False))


def answers(batcher: Batcher, *requests: Request) -> list[tuple[list[int], str]]:
    """Return each request's tokens, and how it ended."""
    numbers = [batcher.submit(request) for request in requests]
    tokens, ends = drain(batcher)
    return [(tokens.get(number, []), ends[number].reason) for number in numbers]


@pytest.mark.parametrize(("name", "arguments"), [("wait", ()), ("get_tensor", ("logits",))])
def test_a_step_of_a_batch_that_finds_no_memory(
    static: Any, monkeypatch: pytest.MonkeyPatch, name: str, arguments: tuple[str, ...]
) -> None:
    """One request ends. What was bound is bound anew, to a graph compiled again, and no ring has a token twice."""
    short, long = (Request(prompt, 6, stop_at_eos=False) for prompt in ([5, 9, 9, 40], [7] * 11))
    do, bind, bound = getattr(openvino.InferRequest, name), static.bind, []

    def binding(layers: Any, mask: np.ndarray, *rest: Any) -> Any:
        bound.append(len(mask))
        return bind(layers, mask, *rest)

    monkeypatch.setattr(static, "bind", binding)
    batcher = Batcher(static, 2)
    ((wanted, _),), ((other, _),) = answers(batcher, short), answers(batcher, long)
    assert bound == [1]
    calls = itertools.count()

    def failing(request: Any, *given: Any) -> Any:
        found = do(request, *given)
        if given == arguments and next(calls) == 4:  # two prompts, then steps
            raise RuntimeError("bad allocation")
        return found

    monkeypatch.setattr(openvino.InferRequest, name, failing)
    kept, (tokens, end) = answers(batcher, short, long)
    assert (kept, end) == ((wanted, "length"), "memory") and 0 < len(tokens) < 6 and tokens == other[: len(tokens)]
    assert bound == [1, 2, 1]


def test_it_is_verified(small: tuple[Path, Artifact]) -> None:
    run = CliRunner().invoke(main, ["verify", str(small[1].directory), "--runtime", "openvino", "--quick"])
    assert run.exit_code == 0, run.output


def test_opset_24_is_refused(exported: Exported) -> None:
    artifact = exported(inline=True, cache="static")[1]
    with pytest.raises(LucidError, match=r"cannot write into the static cache of .*TensorScatter. .* --opset 23\.$"):
        open_session(artifact, "openvino")
