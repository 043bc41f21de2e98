"""Run a checkpoint layer by layer in float32, and find which linear layers read the same input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lucid_deploy.model.checkpoint import Checkpoint
    from lucid_deploy.model.config import LucidConfig


def first_stream(checkpoint: Checkpoint, ids: torch.Tensor) -> torch.Tensor:
    """Embed tokens, int64 ``(B, N)``: the first layer's input, float32 ``(B, N, C)``."""
    if checkpoint.config.class_config:
        from lucid_deploy.model.transformers_class import slices

        return slices.first_stream(checkpoint, ids)
    return checkpoint.tensor("model.embed_tokens.weight")[ids].float()


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


def run_layer(layer: nn.Module, config: LucidConfig, index: int, x: torch.Tensor) -> torch.Tensor:
    """Run one layer over whole sequences ``(B, N, C)``; return its output, of the same shape."""
    import torch

    if config.class_config:
        from lucid_deploy.model.transformers_class import slices

        return slices.run_layer(layer, x)
    from lucid_deploy.model.mixer import layer_steps

    batch, n, _ = x.shape
    positions = torch.arange(n).expand(batch, n)
    step = layer_steps(config, positions, torch.float32)[index]
    found: torch.Tensor = layer(x, step, layer.mixer.empty_cache(batch, x))[0]  # type: ignore[operator, union-attr]
    return found


Run = Callable[["torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True)
class SharedInput:
    """A tensor that linear layers read, one after the other."""

    names: list[str]  # of the linear layers, within their layer
    values: torch.Tensor  # (B, N, in)


def shared_inputs(layer: nn.Module, run: Run, x: torch.Tensor) -> tuple[list[SharedInput], torch.Tensor]:
    """Run a layer; return what its linear layers read, in the order they run, and the layer's output."""
    import torch

    seen: list[tuple[str, torch.Tensor]] = []
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: seen.append((name, args[0])))
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    try:
        output = run(x)
    finally:
        for handle in handles:
            handle.remove()
    groups: list[SharedInput] = []
    for name, given in seen:
        if not groups or given is not groups[-1].values:
            groups.append(SharedInput([], given))
        groups[-1].names.append(name)
    return groups, output
