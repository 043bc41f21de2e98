"""The engine that verifies drafts, on a fake device: its logits, what it leaves in the cache, and speculation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lucid_deploy.artifact import Artifact
from lucid_deploy.batching import Batcher, Request, Token
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.drafting import LookupDrafter
from lucid_deploy.generation.generate import Generation
from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.cache_rows import take_back
from lucid_deploy.runtimes.session import Session
from lucid_deploy.runtimes.tensorrt.session import TensorRtSession
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.runtimes.tensorrt.fake_gpu import FakeDevice, fake_engines

Exported = Callable[..., tuple[Path, Artifact]]
LIMITS = {"max_batch": 2, "max_context": 96, "prefill_chunk": 32}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"cache": "static"},
    {"attention_type": "llama", "cache": "static", "dtype": "float16"},
    {"dtype": "float16", "cache_dtype": "fp8"},
]


def tensorrt(artifact: Artifact, speculate: bool = True) -> tuple[TensorRtSession, FakeDevice]:
    device = FakeDevice()
    return TensorRtSession(artifact, fake_engines(artifact, device, speculate, **LIMITS)[0], device), device


def steps_and_drafts(session: Session[Any]) -> list[np.ndarray]:
    """Verify drafts between single steps; take back what of each row is wrong; then the cache."""
    ids = np.random.default_rng(0).integers(0, 97, (2, 70))
    ids[1, 5:30] = 5  # a repeated token
    mask = np.ones((2, 20), bool)
    mask[0, :6] = False
    cache, at = session.empty_cache(2), 20
    results = [session.prefill(ids[:, :at], cache, mask)]
    for new, kept in ((2, (1, 2)), (16, (9, 3)), (7, (7, 7)), (5, (0, 1)), (1, (1, 1))):
        drafted = np.ones((2, new), bool)
        drafted[1, new - new // 4 :] = False  # row 1 drafts less
        logits = session.decode_several(ids[:, at : at + new], cache, drafted)
        results.append(logits[drafted])
        take_back(session, cache, new, np.minimum(kept, drafted.sum(1)))
        at += new
        results.append(session.decode(ids[:, at : at + 1], cache))
        results.append(session.decode(ids[:, at + 1 : at + 2], cache))
        at += 2
    # Rows that were taken back lie in other places where a session cuts its cache: only tokens, each row's in a line.
    return results + [
        array[row][:, cache.mask[row]] for pair in session.layer_arrays(cache) for array in pair for row in (0, 1)
    ]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_drafts_between_steps_agree_with_the_reference(changes: dict[str, Any], exported: Exported) -> None:
    """The error may be twice what onnxruntime's own session makes with the same graphs."""
    checkpoint, artifact = exported(**changes)
    exact = steps_and_drafts(TorchSession(load_model(checkpoint, torch.float64)))
    own = open_session(artifact, kernels="functions")
    rounds = zip(steps_and_drafts(tensorrt(artifact)[0]), steps_and_drafts(own), exact, strict=True)
    for got, other, true in rounds:
        assert got.shape == true.shape and np.isfinite(got).all()
        assert np.linalg.norm(got - true) <= 2 * np.linalg.norm(other - true) + 1e-6 * np.linalg.norm(true)


@pytest.mark.parametrize("cache", ["growing", "static"])
def test_speculation_gives_the_tokens_of_plain_decoding(cache: str, exported: Exported) -> None:
    session, _ = tensorrt(exported(cache=cache)[1])
    prompt = [5, 9, 40, 5, 9, 40, 5, 9]
    plain = list(Generation(session, prompt, 40, stop_at_eos=False))
    guessed = Generation(session, prompt, 40, stop_at_eos=False, drafter=LookupDrafter())
    assert list(guessed) == plain and guessed.drafts.accepted > 0


@pytest.mark.parametrize("cache", ["growing", "static"])
def test_rows_of_a_batch_draft_each_on_its_own(cache: str, exported: Exported) -> None:
    session, _ = tensorrt(exported(cache=cache)[1])
    requests = [Request([5, 9, 40] * 3, 30, stop_at_eos=False), Request([7, 8, 60, 11], 25, stop_at_eos=False)]
    batcher = Batcher(session, rows=2, drafters=LookupDrafter)
    numbers = [batcher.submit(request) for request in requests]
    found: dict[int, list[int]] = {number: [] for number in numbers}
    while not batcher.idle:
        for event in batcher.step():
            if isinstance(event, Token):
                found[event.request].append(event.token)
    for number, request in zip(numbers, requests, strict=True):
        alone = Generation(session, request.prompt_ids, request.max_new_tokens, stop_at_eos=False)
        assert found[number] == list(alone)


def test_drafts_leave_a_static_cache_and_its_recorded_step_where_they_are(exported: Exported) -> None:
    session, device = tensorrt(exported(cache="static")[1])
    ids = np.random.default_rng(0).integers(0, 97, (1, 40))
    cache = session.empty_cache(1)
    session.prefill(ids[:, :10], cache)
    for i in range(10, 13):
        session.decode(ids[:, i : i + 1], cache)
    layers, recorded = cache.layers, device.recorded
    session.decode_several(ids[:, 13:20], cache)
    take_back(session, cache, 7, np.array([3]))
    session.decode(ids[:, 16:17], cache)
    assert cache.layers is layers and device.recorded == recorded == 1


def test_engines_without_it_say_how_to_build_it(exported: Exported) -> None:
    session, _ = tensorrt(exported()[1], speculate=False)
    with pytest.raises(LucidError, match=r"no engine that verifies drafts; lucid-deploy build .* --speculate --overwr"):
        session.decode_several(np.ones((1, 3), np.int64), session.empty_cache(1))
