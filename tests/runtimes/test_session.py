"""The session interface: runtimes give the same numbers, for every schedule and with padding on either side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.runtimes import Session, open_session
from lucid_deploy.runtimes.torch.session import TorchSession

Exported = Callable[..., tuple[Path, Artifact]]


CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {"attention_type": "llama"},
    {"use_rope": False, "tie_word_embeddings": True},
]


@pytest.fixture(params=range(len(CONFIGURATIONS)), ids=["lucid", "llama", "no rope, tied"])
def case(request: pytest.FixtureRequest, exported: Exported) -> tuple[Session[Any], list[Session[Any]]]:
    """The float64 reference, and the runtimes under test."""
    checkpoint, artifact = exported(**CONFIGURATIONS[request.param])
    reference = TorchSession(load_model(checkpoint, torch.float64, implementation="reference"))
    return reference, [open_session(artifact, "onnxruntime"), open_session(artifact, "torch")]


def tokens(batch: int, count: int) -> np.ndarray:
    ids = np.random.default_rng(count).integers(0, 97, (batch, count))
    ids[-1, count // 3 : 2 * count // 3] = 11  # one token repeated
    return ids


def close(got: np.ndarray, exact: np.ndarray, tolerance: float = 1e-4) -> None:
    assert np.isfinite(got).all()
    assert np.linalg.norm(got - exact) <= tolerance * np.linalg.norm(exact)


@pytest.mark.parametrize("schedule", ["one shot", "chunks", "token by token", "prefill, then decode"])
def test_all_schedules_agree_with_the_reference(case: tuple[Session[Any], list[Session[Any]]], schedule: str) -> None:
    reference, runtimes = case
    ids = tokens(2, 140)
    exact_cache = reference.empty_cache(2)
    exact = reference.prefill(ids, exact_cache)
    for session in runtimes:
        cache = session.empty_cache(2)
        if schedule == "one shot":
            logits = session.prefill(ids, cache)
        elif schedule == "chunks":
            logits = session.prefill(ids, cache, chunk=37)
        else:
            start = 1 if schedule == "token by token" else 133
            logits = session.prefill(ids[:, :start], cache)
            for position in range(start, ids.shape[1]):
                logits = session.decode(ids[:, position : position + 1], cache)
        close(logits, exact)
        assert cache.length == 140
        for ours, wanted in zip(session.layer_arrays(cache), reference.layer_arrays(exact_cache), strict=True):
            close(ours[0], wanted[0])
            close(ours[1], wanted[1])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("chunk", [None, 5])
def test_padded_rows_get_the_same_logits_as_alone(
    case: tuple[Session[Any], list[Session[Any]]], side: str, chunk: int | None
) -> None:
    _, runtimes = case
    ids = tokens(2, 20)
    for session in runtimes:
        alone = session.empty_cache(1)
        wanted = [session.prefill(ids[1:, :13], alone)]
        wanted += [session.decode(np.array([[token]]), alone) for token in (4, 9)]
        batch = np.zeros((2, 20), np.int64)
        mask = np.zeros((2, 20), bool)
        batch[0], mask[0] = ids[0], True
        place = slice(7, 20) if side == "left" else slice(0, 13)
        batch[1, place], mask[1, place] = ids[1, :13], True
        cache = session.empty_cache(2)
        got = [session.prefill(batch, cache, mask, chunk)]
        got += [session.decode(np.array([[1], [token]]), cache) for token in (4, 9)]
        for ours, single in zip(got, wanted, strict=True):
            close(ours[1:], single, 1e-5)


@pytest.mark.parametrize(("logits", "cache"), [("last", "growing"), ("last", "static"), ("all", "growing")])
def test_a_prefill_after_a_padded_past_agrees_with_the_reference(exported: Exported, logits: str, cache: str) -> None:
    """Rows of unequal lengths against each row alone in float64; the second prefill is padded on both sides too."""
    checkpoint, artifact = exported(cache=cache, logits=logits)
    reference = TorchSession(load_model(checkpoint, torch.float64, implementation="reference"))
    ids = tokens(2, 60)
    ids[:, 8:20] = 11  # one token repeated: correlated keys
    first = np.array([[True] * 30, [False] * 9 + [True] * 15 + [False] * 6])
    second = np.array([[True] * 30, [False] * 4 + [True] * 17 + [False] * 9])
    mask = np.concatenate([first, second], axis=1)
    session = open_session(artifact, "onnxruntime")
    held = session.empty_cache(2)
    session.prefill(ids[:, :30], held, first)
    session.decode(ids[:, :1], held, np.array([[False], [False]]))  # both rows wait
    got = [session.prefill(ids[:, 30:], held, second), session.decode(np.array([[4], [9]]), held)]
    for row, token in enumerate((4, 9)):
        own = np.append(ids[row][mask[row]], token)[None]
        exact = reference.prefill_all(own, reference.empty_cache(1))
        close(np.concatenate(got, axis=1)[row], exact[0, -2:])


def test_a_failed_call_leaves_the_cache_as_it_was(exported: Exported) -> None:
    _, artifact = exported()
    session = open_session(artifact)
    cache = session.empty_cache(1)
    session.prefill(np.array([[1, 2, 3]]), cache)
    with pytest.raises(LucidError, match="vocabulary"):
        session.decode(np.array([[97]]), cache)
    assert cache.length == 3 and session.layer_arrays(cache)[0][0].shape[2] == 3
    session.decode(np.array([[4]]), cache)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.zeros((1, 0), np.int64), "empty"),
        (np.array([[97]]), "Token id 97 is outside"),
        (np.array([[-1]]), "Token id -1 is outside"),
        (np.array([[0.5]]), "whole numbers"),
        (np.array([1, 2]), "shape"),
        (np.zeros((2, 3), np.int64), "batch 1"),
        (np.zeros((1, 510), np.int64), "--allow-extrapolation"),
    ],
)
def test_prefill_refuses_wrong_token_ids(exported: Exported, ids: np.ndarray, message: str) -> None:
    _, artifact = exported()
    session = open_session(artifact)
    cache = session.empty_cache(1)
    session.prefill(np.array([[1, 2, 3]]), cache)
    with pytest.raises(LucidError, match=message):
        session.prefill(ids, cache)


def test_a_batch_without_rows_and_empty_chunks_are_refused(exported: Exported) -> None:
    session = open_session(exported()[1])
    with pytest.raises(LucidError, match="There are no tokens to run: the batch has no rows"):
        session.prefill(np.zeros((0, 3), np.int64), session.empty_cache(0))
    with pytest.raises(LucidError, match="at least one"):
        session.prefill(np.ones((1, 3), np.int64), session.empty_cache(1), chunk=0)


@pytest.mark.parametrize(("runtime", "logits"), [("onnxruntime", "all"), ("onnxruntime", "last"), ("torch", "all")])
def test_all_logits_are_those_of_each_token(exported: Exported, runtime: str, logits: str) -> None:
    """``prefill_all`` after a cached past, with padding, gives what decoding token by token gives."""
    session = open_session(exported(logits=logits)[1], runtime)
    rng = np.random.default_rng(0)
    past, new = rng.integers(3, 97, (2, 5)), rng.integers(3, 97, (2, 6))
    mask = np.array([[False, False, True, True, True, True], [True] * 6])
    cache = session.empty_cache(2)
    session.prefill(past, cache)
    one, other = session.fork(cache), session.fork(cache)
    found = session.prefill_all(new, one, mask)
    steps = [session.decode(new[:, i : i + 1], other, mask[:, i : i + 1]) for i in range(6)]
    assert found.shape == (2, 6, 97)
    np.testing.assert_allclose(found[mask], np.concatenate(steps, axis=1)[mask], atol=1e-4)
    assert one.length == other.length == 11
    with pytest.raises(LucidError, match="mask"):
        session.prefill_all(new, one, mask[:, :3])


def test_dynamic_rope_scaling_is_refused_beyond_the_models_context(make_checkpoint: Callable[..., Path]) -> None:
    """Up to that length RoPE's angles are unscaled; beyond it, those of cached keys would have to change too."""
    scaling = {"rope_type": "dynamic", "factor": 4.0}
    scaled, plain = (
        TorchSession(load_model(make_checkpoint(name, **changes)), allow_extrapolation=True)
        for name, changes in {"scaled": {"rope_scaling": scaling}, "plain": {}}.items()
    )
    ids = np.arange(512)[None] % 97
    answers = [session.prefill(ids, session.empty_cache(1)) for session in (scaled, plain)]
    np.testing.assert_array_equal(*answers)
    assert (scaled.context_limit, plain.context_limit) == (512, None)
    with pytest.raises(LucidError, match="rope_scaling 'dynamic' the angles of all keys change beyond that length"):
        scaled.prefill(np.zeros((1, 513), np.int64), scaled.empty_cache(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits, layers: (logits[..., 1:], layers), r"of shape \(2, 1, 96\) and 2 layers, not \(2, 1, 97\)"),
        (lambda logits, layers: (logits.repeat(4, 1), layers), r"of shape \(2, 4, 97\) and 2 layers, not"),
        (lambda logits, layers: (logits, layers[1:]), "and 1 layers, not"),
    ],
)
def test_results_of_wrong_shapes_are_refused(exported: Exported, change: Callable[..., Any], message: str) -> None:
    """Otherwise sampling would use logits of padding, and decoding a cache with missing layers."""

    class Wrong(TorchSession):
        def _run(self, *given: Any) -> Any:
            return change(*super()._run(*given))

    session = Wrong(load_model(exported()[0], torch.float32))
    with pytest.raises(CheckFailed, match=f"prefill of runtime torch .*{message}"):
        session.prefill(np.full((2, 5), 7), session.empty_cache(2))
