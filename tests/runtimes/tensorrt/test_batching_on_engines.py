"""A batcher, and the operations on caches, over TensorRT sessions on a fake device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.batching import Batcher, Finished, Request, Token
from lucid_deploy.generation.generate import Generation
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.session import Session
from lucid_deploy.runtimes.tensorrt.session import TensorRtSession
from tests.runtimes.tensorrt.fake_gpu import FakeDevice, fake_engines

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.fixture(params=["growing", "static"])
def sessions(request: pytest.FixtureRequest, exported: Exported) -> tuple[Session, Session]:
    """The session under test, and onnxruntime's."""
    _, artifact = exported(cache=request.param)
    device = FakeDevice()
    engines, _ = fake_engines(artifact, device, max_batch=3, max_context=128, prefill_chunk=32)
    return TensorRtSession(artifact, engines, device), open_session(artifact)


def test_requests_give_the_tokens_of_lone_generations(sessions: tuple[Session, Session]) -> None:
    session, plain = sessions
    rng = np.random.default_rng(1)
    requests = [Request(rng.integers(2, 97, n).tolist(), 12, stop_at_eos=False) for n in (40, 3, 17, 70, 126)]
    batcher = Batcher(session, rows=3, prefill_chunk=20, prefix_tokens=200)
    numbers = [batcher.submit(request) for request in requests]
    tokens: dict[int, list[int]] = {number: [] for number in numbers}
    ends = {}
    while not batcher.idle:
        for event in batcher.step():
            if isinstance(event, Token):
                tokens[event.request].append(event.token)
            else:
                ends[event.request] = event
    for number, request in zip(numbers[:-1], requests, strict=False):
        assert tokens[number] == list(Generation(plain, request.prompt_ids, 12, stop_at_eos=False))
    assert ends[numbers[-1]] == Finished(numbers[-1], "context")  # the engines' limit, not the model's
    assert len(tokens[numbers[-1]]) == 3


def test_truncate_is_exact(sessions: tuple[Session, Session]) -> None:
    session, plain = sessions
    ids = np.random.default_rng(2).integers(0, 97, (1, 60))
    cache, exact = session.empty_cache(1), plain.empty_cache(1)
    session.prefill(ids[:, :50], cache)
    for token in ids[0, 50:]:
        session.decode(np.array([[token]]), cache)
    before = session.layer_arrays(cache)
    for keep in (55, 20):
        session.truncate(cache, keep)
        for now, then in zip(session.layer_arrays(cache), before, strict=True):
            assert all(np.array_equal(a, b[:, :, :keep]) for a, b in zip(now, then, strict=True))
        plain.truncate(exact, 0)
        plain.prefill(ids[:, :keep], exact)
        for token in (5, 6, 5):
            got = session.decode(np.array([[token]]), cache)
            np.testing.assert_allclose(got, plain.decode(np.array([[token]]), exact), atol=1e-4)
    session.truncate(cache, 10)
    plain.truncate(exact, 10)
    got = session.prefill(ids[:, 10:40], cache)
    np.testing.assert_allclose(got, plain.prefill(ids[:, 10:40], exact), atol=1e-4)
