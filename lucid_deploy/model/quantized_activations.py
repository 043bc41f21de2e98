"""Round the inputs of linear layers to 8 bits, as onnxruntime's ``MatMulNBits`` does at accuracy level 4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lucid_deploy.cache.storage import LEVELS
from lucid_deploy.model.lucid import LucidForCausalLM


def round_to_int8(x: Tensor, block_size: int) -> Tensor:
    """Round the last axis to whole multiples of (largest magnitude of the block) / 127; same shape and type.

    Args:
        x: Any shape; the last block may be shorter.
        block_size: Elements that share a scale.
    """
    width = x.shape[-1]
    blocks = F.pad(x.float(), (0, -width % block_size)).unflatten(-1, (-1, block_size))  # (…, blocks, block)
    scale = blocks.abs().amax(dim=-1, keepdim=True) / LEVELS
    rounded = torch.where(scale == 0, blocks, (blocks / scale).round() * scale)
    return rounded.flatten(-2)[..., :width].to(x.dtype)


def quantize_activations(model: LucidForCausalLM, block_sizes: Mapping[str, int]) -> LucidForCausalLM:
    """Make linear layers round their inputs; the model itself is changed and returned.

    Args:
        model: Any type.
        block_sizes: For the names of weights; those of no linear layer (an embedding's) do not matter.
    """
    for name, module in model.named_modules():
        size = block_sizes.get(f"{name}.weight")
        if size is not None and isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(_hook(size))
    return model


def _hook(block_size: int) -> Any:
    return lambda module, inputs: (round_to_int8(inputs[0], block_size),)
