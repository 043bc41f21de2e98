"""Decoding in the caller's buffers is decoding: the same logits, and one new row in each of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from lucid_deploy.artifact import Artifact
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.torch.session import TorchSession

Exported = Callable[..., tuple[Path, Artifact]]
ROOM = 16


def step(
    checkpoint: Path, dtype: torch.dtype, prompt: np.ndarray, token: np.ndarray
) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """Return PyTorch's logits after a prompt and one token, ``(1, V)``, and every layer's rows, ``(Hkv, N, D)``."""
    session = TorchSession(load_model(Checkpoint(checkpoint), dtype, implementation="reference"))
    cache = session.empty_cache(1)
    session.prefill(prompt, cache)
    logits = session.decode(token[None], cache)[0].astype(np.float64)
    return logits, [[np.asarray(array[0], np.float64) for array in layer] for layer in session.layer_arrays(cache)]


def test_steps_in_bound_buffers_are_decoding_steps(exported: Exported) -> None:
    """Two rows of unlike lengths; the longer one is what a session's own cache gives."""
    checkpoint, artifact = exported(cache="static")
    session = open_session(artifact)
    decoding = session.in_place
    assert decoding is not None and decoding.layout == session.layout
    prompts = [np.array([[5, 5, 5, 8, 5, 5, 9]]), np.array([[5, 5, 3]])]
    caches = [session.empty_cache(1) for _ in prompts]
    for prompt, cache in zip(prompts, caches, strict=True):
        session.prefill(prompt, cache)
    buffers = [
        tuple(np.zeros((2, x.shape[1], ROOM, x.shape[3]), x.dtype) for x in layer)
        for layer in session.layer_arrays(caches[0])
    ]
    for row, cache in enumerate(caches):
        for layer, held in zip(buffers, session.layer_arrays(cache), strict=True):
            for buffer, array in zip(layer, held, strict=True):
                buffer[row, :, : cache.length] = array[0]
    before = [tuple(buffer.copy() for buffer in layer) for layer in buffers]
    length = np.array([cache.length for cache in caches])
    ids, mask = np.array([[7], [5]]), np.ones((2, ROOM), np.int64)
    binding = decoding.bind(buffers, mask, ids, length[:, None].copy(), length)
    logits = decoding.run_bound(binding)
    for row, cache in enumerate(caches):
        steps = [step(checkpoint, dtype, prompts[row], ids[row]) for dtype in (torch.float64, torch.float32)]
        (exact, rows), (rounded, rounded_rows) = steps
        assert np.linalg.norm(logits[row] - exact) <= 4 * np.linalg.norm(rounded - exact)
        session.decode(ids[row : row + 1], cache)
        for i, (layer, old) in enumerate(zip(buffers, before, strict=True)):
            for j, (buffer, then) in enumerate(zip(layer, old, strict=True)):
                allowed = 4 * np.linalg.norm(rounded_rows[i][j] - rows[i][j])
                assert np.linalg.norm(buffer[row, :, : cache.length] - rows[i][j]) <= allowed
                assert np.array_equal(buffer[row, :, cache.length :], then[row, :, cache.length :])
                assert np.array_equal(buffer[row, :, : cache.length - 1], then[row, :, : cache.length - 1])
