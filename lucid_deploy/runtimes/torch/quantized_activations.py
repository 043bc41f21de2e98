"""Round inputs of linear layers to int8, as onnxruntime's ``MatMulNBits`` at accuracy level 4 does, or to E4M3."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lucid_deploy.cache.storage import LEVELS
from lucid_deploy.model.lucid import CausalModel

_E4M3_MAX = 448.0


def round_to_int8(x: Tensor, block_size: int) -> Tensor:
    """Round the last axis to integer multiples of (largest magnitude of the block) / 127; same shape and type.

    Args:
        x: Any shape; the last block may be shorter.
        block_size: Elements that share a scale.
    """
    width = x.shape[-1]
    blocks = F.pad(x.float(), (0, -width % block_size)).unflatten(-1, (-1, block_size))  # (…, blocks, block)
    scale = blocks.abs().amax(dim=-1, keepdim=True) / LEVELS
    rounded = torch.where(scale == 0, blocks, (blocks / scale).round() * scale)
    return rounded.flatten(-2)[..., :width].to(x.dtype)


def quantize_activations(model: CausalModel, block_sizes: Mapping[str, int]) -> CausalModel:
    """Make linear layers round their inputs to int8; change the model in place and return it.

    Args:
        model: The model, in any precision.
        block_sizes: Block sizes by weight name; layers of other weights do not round.
    """
    for name, module in model.named_modules():
        size = block_sizes.get(f"{name}.weight")
        if size is not None and isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(_hook(size))
    return model


def _hook(block_size: int) -> Any:
    return lambda module, inputs: (round_to_int8(inputs[0], block_size),)


def round_to_fp8(x: Tensor, scale: float | None, size: int | None) -> Tensor:
    """Round to E4M3 in units of a scale; same shape and type.

    Args:
        x: Any shape.
        scale: The scale; None: (largest magnitude of the values that share it) / 448.
        size: Number of neighbours on the last axis that share a scale; None: all.
    """
    groups = x.float().unflatten(-1, (-1, size or x.shape[-1]))  # (…, groups, size)
    if scale is None:
        steps = (groups.abs().amax(dim=-1, keepdim=True) / _E4M3_MAX).clamp(min=2.0**-126)
    else:
        steps = torch.tensor(scale, dtype=torch.float32, device=x.device)
    numbers = (groups / steps).clamp(-_E4M3_MAX, _E4M3_MAX).to(torch.float8_e4m3fn)
    return (numbers.float() * steps).flatten(-2).to(x.dtype)


def round_inputs(
    model: CausalModel, names: Collection[str], size: int | None, scales: Mapping[str, float]
) -> CausalModel:
    """Make linear layers round their inputs to E4M3; change the model in place and return it.

    Args:
        model: The model, in any precision.
        names: Weight names of the layers that round.
        size: Number of neighbouring inputs that share a scale; None: all.
        scales: Static scales by weight name; layers without one compute scales from their inputs.
    """

    def hook(scale: float | None) -> Any:
        return lambda module, inputs: (round_to_fp8(inputs[0], scale, size),)

    for name, module in model.named_modules():
        if f"{name}.weight" in names and isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(hook(scales.get(f"{name}.weight")))
    return model
