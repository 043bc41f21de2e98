"""The step that decodes into a static cache, on a fake device: rows that wait, and when it is recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lucid_deploy.artifact import Artifact
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.session import Session
from lucid_deploy.runtimes.tensorrt.engine_contexts import DecodeStep, StateCopy
from lucid_deploy.runtimes.tensorrt.session import TensorRtSession
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.runtimes.tensorrt.fake_gpu import FakeDevice, fake_engines

Exported = Callable[..., tuple[Path, Artifact]]
Hybrid = Callable[..., Artifact]
LIMITS = {"max_batch": 2, "max_context": 96, "prefill_chunk": 16}
IDS = np.random.default_rng(0).integers(0, 61, (2, 20))


def tensorrt(artifact: Artifact) -> tuple[TensorRtSession, FakeDevice]:
    device = FakeDevice()
    return TensorRtSession(artifact, fake_engines(artifact, device, **LIMITS)[0], device), device


def states(session: Session[Any], cache: Any) -> list[np.ndarray]:
    layers = zip(session.layout, session.layer_arrays(cache), strict=True)
    return [array for pair in layers for tensor, array in zip(*pair, strict=True) if tensor.sort == "state"]


def waiting(session: Session[Any], steps: list[tuple[bool, bool]]) -> list[np.ndarray]:
    """Decode with rows that have a token or none; return the logits of tokens, and the states at the end."""
    cache, results = session.empty_cache(2), []
    session.prefill(IDS[:, :12], cache)
    for index, has_token in enumerate(steps):
        mask = np.array(has_token)
        results.append(session.decode(IDS[:, 12 + index, None], cache, mask[:, None])[mask])
    return results + states(session, cache)


def padded(session: Session[Any]) -> list[np.ndarray]:
    """Ask for all logits of a batch that is padded on the left; then decode."""
    mask = np.ones((2, 12), bool)
    mask[1, :5] = False
    cache = session.empty_cache(2)
    results = [session.prefill_all(IDS[:, :12], cache, mask)[mask]]
    results += [session.decode(IDS[:, index, None], cache) for index in (12, 13)]
    return results + states(session, cache)


def check(artifact: Artifact, run: Callable[[Session[Any]], list[np.ndarray]]) -> FakeDevice:
    """Hold the errors against twice those of onnxruntime's own session with the same graphs."""
    session, device = tensorrt(artifact)
    exact = run(TorchSession(load_model(Checkpoint(artifact.manifest.source), torch.float64)))
    own = run(open_session(artifact, kernels="functions"))
    for got, other, true in zip(run(session), own, exact, strict=True):
        assert got.shape == true.shape and np.isfinite(got).all()
        assert np.linalg.norm(got - true) <= 2 * np.linalg.norm(other - true) + 1e-6 * np.linalg.norm(true)
    return device


BOTH, FIRST, SECOND, NONE = (True, True), (True, False), (False, True), (False, False)


@pytest.mark.parametrize(
    "steps",
    [
        [FIRST, BOTH, BOTH],
        [BOTH, SECOND, BOTH, BOTH],
        [BOTH, BOTH, FIRST, BOTH, NONE, BOTH],
        [FIRST, FIRST, SECOND, BOTH],
    ],
    ids=["first step", "second step", "steps that would be replayed", "several in turn"],
)
@pytest.mark.parametrize("kind", ["growing", "static"])
def test_a_row_that_waits_keeps_its_states(kind: str, steps: list[tuple[bool, bool]], hybrid: Hybrid) -> None:
    device = check(hybrid(cache=kind), lambda session: waiting(session, steps))
    replays = sum(has_token == BOTH for has_token in steps[1:]) if kind == "static" else 0
    assert (device.recorded, device.replayed) == (min(replays, 1), replays)


def test_states_of_rows_with_a_token_are_copied_and_no_others() -> None:
    device = FakeDevice()
    read, written = device.allocate(12), device.allocate(12)
    step = DecodeStep(device, 3, [StateCopy(read, written, 4)])
    old, new = np.arange(12, dtype=np.uint8), np.arange(100, 112, dtype=np.uint8)
    for tokens in ([True, False, True], [False, True, True], [False, False, False], [True, True, True]):
        device.upload(read, old)
        device.upload(written, new)
        step.run(lambda: None, np.array(tokens))
        wanted = np.where(np.repeat(tokens, 4), new, old)
        np.testing.assert_array_equal(device.at(read, 12), wanted)
    step.drop()
    assert (device.recorded, device.replayed, device.dropped) == (1, 1, 1)
