"""transformers' Llama behind the session interface gives what it gives by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lucid_deploy.model.config import parse_config
from tests.conftest import TINY

pytest.importorskip("transformers", reason='needs transformers: pip install -e ".[dev]"')

from lucid_deploy.bench.transformers_session import TransformersSession
from lucid_deploy.generation.generate import Generation

IDS = np.random.default_rng(0).integers(0, 97, (2, 14))


@pytest.fixture(scope="module")
def session() -> TransformersSession:
    torch.manual_seed(0)
    return TransformersSession(parse_config(TINY, "test"), "float32")


def test_prefill_and_decode_are_its_own_forward(session: TransformersSession) -> None:
    with torch.inference_mode():
        wanted = session.model(torch.from_numpy(IDS)).logits.numpy()
    cache = session.empty_cache(2)
    got = [session.prefill(IDS[:, :9], cache, chunk=4)]
    got += [session.decode(IDS[:, i : i + 1], cache) for i in range(9, 14)]
    np.testing.assert_allclose(np.concatenate(got, axis=1), wanted[:, 8:], atol=1e-5)
    assert cache.length == 14 and session.layer_arrays(cache)[0][0].shape == (2, 2, 14, 36)


def test_a_prompt_runs_at_once(session: TransformersSession) -> None:
    seen: list[tuple[int, int]] = []
    generation = Generation(session, [3] * 1100, 1, progress=lambda *done: seen.append(done))
    list(generation)
    assert seen == [(1100, 1100)]


def test_padding_changes_no_row(session: TransformersSession) -> None:
    alone = session.prefill(IDS[1:, 5:], session.empty_cache(1))
    mask = np.ones((2, 14), bool)
    mask[1, :5] = False
    both = session.prefill(IDS, session.empty_cache(2), mask)
    np.testing.assert_allclose(both[1:], alone, atol=1e-5)


def test_a_fork_goes_on_alone(session: TransformersSession) -> None:
    cache = session.empty_cache(2)
    session.prefill(IDS, cache)
    fork = session.fork(cache)
    session.decode(IDS[:, :1], fork)
    assert (cache.length, fork.length) == (14, 15)
    assert cache.layers[0][0].shape[2] == 14
