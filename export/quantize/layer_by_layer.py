"""Run a checkpoint in float32, one layer in memory at a time: for what is measured or learned before an export."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from lucid_deploy.model.block import Layer
    from lucid_deploy.model.checkpoint import Checkpoint
    from lucid_deploy.model.config import LucidConfig
    from lucid_deploy.model.mixer import LayerCache

Array = np.ndarray[Any, np.dtype[Any]]


def embedded(checkpoint: Checkpoint, prompts: Sequence[Array], table: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Return what the first layer is given, float32 ``(B, N, C)`` of each int64 ``(B, N)``.

    Args:
        checkpoint: The opened checkpoint.
        prompts: Token ids.
        table: An embedding ``(vocab, C)`` in place of the checkpoint's.
    """
    import torch

    if table is None:
        table = checkpoint.tensor("model.embed_tokens.weight")
    multiplier = checkpoint.config.embedding_multiplier
    return [table[torch.from_numpy(ids)].float() * multiplier for ids in prompts]


def load_layer(checkpoint: Checkpoint, index: int) -> Layer:
    """Read one layer of a checkpoint, in float32."""
    import torch

    from lucid_deploy.model.block import make_layer

    with torch.device("meta"):
        layer = make_layer(checkpoint.config, index, "blocked")
    prefix = f"model.layers.{index}."
    state = {name: checkpoint.tensor(prefix + name).float() for name in layer.state_dict()}
    layer.load_state_dict(state, assign=True)
    return layer.eval()


def run_layer(layer: Layer, config: LucidConfig, index: int, x: torch.Tensor) -> tuple[torch.Tensor, LayerCache]:
    """Run one layer over whole sequences ``(B, N, C)``; return its output, of the same shape, and its cache."""
    import torch

    from lucid_deploy.model.mixer import layer_steps

    batch, n, _ = x.shape
    positions = torch.arange(n).expand(batch, n)
    step = layer_steps(config, positions, torch.float32)[index]
    found: tuple[torch.Tensor, LayerCache] = layer(x, step, layer.mixer.empty_cache(batch, x))
    return found


def final_norm(checkpoint: Checkpoint, x: torch.Tensor) -> torch.Tensor:
    """Return what the head is given of what the last layer gives; float32, same shape."""
    import torch.nn.functional as F

    weight = checkpoint.tensor("model.norm.weight").float()
    return F.rms_norm(x, x.shape[-1:], weight, checkpoint.config.rms_norm_eps)
