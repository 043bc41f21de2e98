"""Are the scales that AWQ has put into weights ones that cancel? Without rounding they must change nothing.

The expected weights of an artifact, and the model that its runtime is held against, have these scales in them. So
scales that do not cancel would be taken for right wherever the two are compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.artifact.folded_scales import Scales, scaled
from lucid_deploy.errors import CheckFailed
from lucid_deploy.runtimes.session import Array

if TYPE_CHECKING:
    from torch import Tensor

    from lucid_deploy.model.checkpoint import Checkpoint

TOKENS, REPEATED = 48, 16  # of a prompt whose last tokens repeat the first, so that keys resemble each other
ROUNDING = 2.0**-24  # of float32, relative: scaled weights are rounded to it


def check_folding(scales: Scales, checkpoint: Checkpoint) -> None:
    """Run a checkpoint with and without the scales in float64: logits and keys must be the same.

    They may differ by 4 times what rounding every weight to float32 changes, since scaled weights are rounded so.
    Values may be scaled; keys may not, for LUCID's solve sees their size.

    Args:
        scales: As :func:`~lucid_deploy.artifact.folded_scales.read_scales` gives them.
        checkpoint: What the artifact was exported from.

    Raises:
        CheckFailed: They change logits or keys.
    """
    plain = _run(checkpoint, lambda name: checkpoint.tensor(name))
    rounded = _run(checkpoint, lambda name: _moved(checkpoint.tensor(name), name))
    folded = _run(checkpoint, lambda name: scaled(checkpoint.tensor(name), name, scales))
    for what, exact in plain.items():
        allowed = 4 * np.linalg.norm(rounded[what] - exact)
        found = np.linalg.norm(folded[what] - exact)
        if not found <= allowed:
            raise CheckFailed(
                f"the scales that AWQ has put into weights do not cancel: without any rounding they change {what} by "
                f"{found / max(float(np.linalg.norm(exact)), 1e-300):.2g} of their size"
            )


def _run(checkpoint: Checkpoint, load: Any) -> dict[str, Array]:
    """Return the logits of every token and each layer's keys."""
    import torch

    from lucid_deploy.model.on_demand import float64_on_demand
    from lucid_deploy.runtimes.torch.session import TorchSession

    def stored(name: str) -> Tensor:
        value: Tensor = load(checkpoint.stored_name(name))
        return value

    session = TorchSession(float64_on_demand(checkpoint.config, stored))
    length = min(TOKENS, checkpoint.config.max_position_embeddings)
    ids = np.random.default_rng(0).integers(0, checkpoint.config.vocab_size, length)
    ids[-min(REPEATED, length // 2) :] = ids[: min(REPEATED, length // 2)]
    cache = session.empty_cache(1)
    with torch.inference_mode():
        found = {"the logits": np.asarray(session.prefill_all(ids[None], cache), np.float64)}
    for index, (layer, arrays) in enumerate(zip(session.layout, session.layer_arrays(cache), strict=True)):
        for tensor, array in zip(layer, arrays, strict=True):
            if tensor.name == "key":
                found[f"the keys of layer {index}"] = np.asarray(array, np.float64)
    return found


def _moved(weight: Tensor, name: str) -> Tensor:
    """Return a weight whose elements are off by a rounding of float32, up or down."""
    import zlib

    import torch

    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    signs = torch.randint(0, 2, weight.shape, generator=generator, dtype=torch.float64) * 2 - 1
    return weight.double() * (1 + ROUNDING * signs)
