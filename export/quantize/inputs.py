"""Run a checkpoint layer by layer in float32, and find which linear layers read the same input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lucid_deploy.model.checkpoint import Checkpoint
    from lucid_deploy.model.config import LucidConfig
    from lucid_deploy.model.mixer import LayerCache, Mixer

Array = np.ndarray[Any, np.dtype[Any]]


def embedded(checkpoint: Checkpoint, prompts: Sequence[Array]) -> list[torch.Tensor]:
    """Embed prompts: float32 ``(B, N, C)`` for each int64 ``(B, N)``."""
    import torch

    if checkpoint.config.class_config:
        from lucid_deploy.model.transformers_class import slices

        return slices.first_streams(checkpoint, prompts)
    table = checkpoint.tensor("model.embed_tokens.weight")
    return [table[torch.from_numpy(ids)].float() for ids in prompts]


def load_layer(checkpoint: Checkpoint, index: int) -> nn.Module:
    """Read one layer of a checkpoint, in float32."""
    import torch

    if checkpoint.config.class_config:
        from lucid_deploy.model.transformers_class import slices

        return slices.load_layer(checkpoint, index)
    from lucid_deploy.model.block import make_layer

    with torch.device("meta"):
        layer = make_layer(checkpoint.config, index, "blocked")
    prefix = f"model.layers.{index}."
    state = {name: checkpoint.tensor(prefix + name).float() for name in layer.state_dict()}
    layer.load_state_dict(state, assign=True)
    return layer.eval()


def run_layer(layer: nn.Module, config: LucidConfig, index: int, x: torch.Tensor) -> tuple[torch.Tensor, LayerCache]:
    """Run one layer over whole sequences ``(B, N, C)``; return its output, of the same shape, and its cache."""
    import torch

    if config.class_config:
        from lucid_deploy.model.transformers_class import slices

        return slices.run_layer(layer, x)
    from lucid_deploy.model.mixer import layer_steps

    batch, n, _ = x.shape
    positions = torch.arange(n).expand(batch, n)
    step = layer_steps(config, positions, torch.float32)[index]
    found: tuple[torch.Tensor, LayerCache] = layer(x, step, mixer_of(layer).empty_cache(batch, x))
    return found


def mixer_of(layer: nn.Module) -> Mixer:
    """Return the module that mixes tokens in a layer of :func:`load_layer`."""
    model = vars(layer).get("lucid_model")  # a class of transformers calls it from outside of the layer
    found: Mixer = layer.mixer if model is None else model.mixers()[0]  # type: ignore[assignment]
    return found


def final_norm(checkpoint: Checkpoint, x: torch.Tensor) -> torch.Tensor:
    """Apply the norm before the head to the last layer's output; float32, same shape."""
    import torch.nn.functional as F

    if checkpoint.config.class_config:
        from lucid_deploy.model.transformers_class import slices

        return slices.head_input(checkpoint, x)

    weight = checkpoint.tensor("model.norm.weight").float()
    return F.rms_norm(x, x.shape[-1:], weight, checkpoint.config.rms_norm_eps)


_PROBE = 4  # tokens to find the order of the linear layers with
Run = Callable[["torch.Tensor"], Any]


def shared_inputs(layer: nn.Module, run: Run, x: torch.Tensor) -> list[list[str]]:
    """Return the names of a layer's linear layers in the order they run, grouped by the tensor that they read."""
    import torch

    seen: list[tuple[str, torch.Tensor]] = []
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: seen.append((name, args[0])))
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    try:
        run(x[:1, :_PROBE])
    finally:
        for handle in handles:
            handle.remove()
    groups: list[list[str]] = []
    last: torch.Tensor | None = None
    for name, given in seen:
        if given is not last:
            groups.append([])
        groups[-1].append(name)
        last = given
    return groups
