"""OpenVINO with a static cache of opset 23: float64's logits, in buffers that stay where they are."""

from __future__ import annotations

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


def test_a_batch_answers_as_each_alone(static: Session[Any]) -> None:
    """Requests of other lengths share the buffers, which batching binds."""
    requests = [Request(prompt, 6, stop_at_eos=False) for prompt in ([5, 9, 9, 40], [7] * 11, [3, 4])]
    batcher = Batcher(static, 3)
    numbers = [batcher.submit(request) for request in requests]
    tokens, _ = drain(batcher)
    for number, request in zip(numbers, requests, strict=True):
        assert tokens[number] == list(Generation(static, request.prompt_ids, 6, request.sampling, stop_at_eos=False))


def test_it_is_verified(small: tuple[Path, Artifact]) -> None:
    run = CliRunner().invoke(main, ["verify", str(small[1].directory), "--runtime", "openvino", "--quick"])
    assert run.exit_code == 0, run.output


def test_opset_24_is_refused(exported: Exported) -> None:
    artifact = exported(inline=True, cache="static")[1]
    with pytest.raises(LucidError, match=r"cannot write into the static cache of .*TensorScatter. .* --opset 23\.$"):
        open_session(artifact, "openvino")
