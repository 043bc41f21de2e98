"""A cache after a prefill, and tokens to decode after it: for runtimes that run only the decode graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.runtimes.torch.session import TorchSession

PREFILLED = 21


def write_decode_case(checkpoint: Path, artifact: Path, path: Path, tokens: int, batch: int) -> None:
    """Write tokens that repeat, their padding, the cache that onnxruntime's prefill made, and float64's logits.

    Args:
        checkpoint: What the artifact was exported from.
        artifact: Its directory.
        path: The file to write, for numpy.
        tokens: How many are decoded.
        batch: Rows; the last of several begins with padding.
    """
    exact = TorchSession(load_model(checkpoint, torch.float64, implementation="reference"))
    rng = np.random.default_rng(5)
    ids = rng.choice(rng.integers(0, 97, 9), (batch, PREFILLED + tokens))
    mask = np.ones(ids.shape, np.int64)
    mask[1:, :4] = 0
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    cache, before = exact.empty_cache(batch), slice(0, PREFILLED)
    exact.prefill(ids[:, before], cache, mask[:, before].astype(bool))
    logits = [exact.decode(ids[:, column : column + 1], cache) for column in range(PREFILLED, PREFILLED + tokens)]

    session = ort.InferenceSession(artifact / "prefill.onnx", providers=["CPUExecutionProvider"])
    feed = {"input_ids": ids[:, before], "attention_mask": mask[:, before], "position_ids": positions[:, before]}
    for item in session.get_inputs()[3:]:
        feed[item.name] = np.zeros((batch, item.shape[1], 0, item.shape[3]), np.float32)
    names = [item.name for item in session.get_outputs()[1:]]
    past = dict(zip(names, session.run(names, feed), strict=True))
    caches = {name.replace("present", "past_key_values"): array for name, array in past.items()}
    np.savez(path, ids=ids, mask=mask, positions=positions, logits=np.concatenate(logits, axis=1), **caches)
