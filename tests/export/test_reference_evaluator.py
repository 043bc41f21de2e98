"""ONNX's own evaluator runs the exported graphs as they are, with the logits of the float64 model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lucid_deploy.artifact import Artifact
from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.runtimes import Capabilities
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.conftest import MIXED
from tests.extension.reference_runtime import ReferenceSession

Exported = Callable[..., tuple[Path, Artifact]]
ERROR = 1e-5  # relative, of a step's logits in float32; plain rounding gives some 1e-6
CHUNKS = (70, 1, 30)  # tokens of each prefill: over a window, in whose ring GatherElements would end at 64 tokens


@pytest.mark.parametrize("inline", [False, True], ids=["functions", "inline"])
def test_logits_are_those_of_float64(exported: Exported, inline: bool) -> None:
    checkpoint, artifact = exported(inline=inline, **MIXED)
    exact = TorchSession(load_model(checkpoint, torch.float64, implementation="reference"))
    session = ReferenceSession(artifact, Capabilities(cache_sorts=("rows", "ring")), False)
    rng = np.random.default_rng(3)
    ids = rng.choice(rng.integers(0, 97, 9), (2, sum(CHUNKS) + 6))  # repeated tokens: their keys resemble each other
    mask = np.ones(ids.shape, bool)
    mask[1, :5] = False
    mask[0, CHUNKS[0] - 3 : CHUNKS[0]] = False  # so that the last token is not the last column
    ends = np.cumsum([*CHUNKS, *[1] * 6])
    caches = [each.empty_cache(2) for each in (exact, session)]
    for number, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        part = slice(start, end)
        runs = [
            (each.prefill if number < len(CHUNKS) else each.decode)(ids[:, part], cache, mask[:, part])
            for each, cache in zip((exact, session), caches, strict=True)
        ]
        wanted, found = (logits[:, -1].astype(np.float64) for logits in runs)
        error = np.linalg.norm(found - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)
        assert error.max() <= ERROR, (number, error)
