"""Write weights in E4M3 in the layouts of other tools, number by number, and what they mean by their formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.conftest import write_checkpoint
from tests.model.packed.packing import change_settings

Parts = dict[str, torch.Tensor]


def blocks(weight: torch.Tensor, high: int, wide: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return numbers ``(out, in)`` and scales of rectangles that are near a weight; loops, in no hurry."""
    rows, width = weight.shape
    numbers = torch.zeros(rows, width, dtype=torch.float8_e4m3fn)
    scales = torch.zeros(-(-rows // high), -(-width // wide), dtype=dtype)
    for row in range(scales.shape[0]):
        for column in range(scales.shape[1]):
            place = (slice(row * high, row * high + high), slice(column * wide, column * wide + wide))
            scales[row, column] = weight[place].abs().max() / 448
            numbers[place] = (weight[place] / scales[row, column].float()).clamp(-448, 448).to(torch.float8_e4m3fn)
    return numbers, scales


def meaning(numbers: torch.Tensor, scales: torch.Tensor, high: int, wide: int) -> torch.Tensor:
    """Return number · scale, float64 ``(out, in)``."""
    meant, factors = numbers.double().tolist(), scales.double().tolist()
    for row, given in enumerate(meant):
        for column in range(len(given)):
            given[column] *= factors[row // high][column // wide]
    return torch.tensor(meant, dtype=torch.float64)


def compressed_float(strategy: str, inputs: Any, block: Any = None) -> dict[str, Any]:
    """Return ``quantization_config`` as llm-compressor writes it."""
    common = {"num_bits": 8, "type": "float", "symmetric": True, "actorder": None, "observer_kwargs": {}}
    weights = {**common, "strategy": strategy, "dynamic": False, "block_structure": block, "observer": "minmax"}
    rounding = None if inputs is None else {**common, "observer": None, **inputs}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": rounding, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
    }


def fine_grained(scheme: str, size: Any = "absent", **more: Any) -> dict[str, Any]:
    """Return ``quantization_config`` as transformers writes it, and AutoFP8 without a size of blocks."""
    named = {} if size == "absent" else {"weight_block_size": size, "fmt": "e4m3"}
    return {"quant_method": "fp8", "activation_scheme": scheme, **named, **more}


STATIC = {"strategy": "tensor", "dynamic": False}
TOKEN = {"strategy": "token", "dynamic": True}
GROUP = {"strategy": "group", "dynamic": True, "group_size": 16}
# kind: settings; names of the scale and the inputs' scale; rows and inputs of a block, 0 for all; type of scales.
KINDS: dict[str, tuple[dict[str, Any], str, str | None, tuple[int, int], torch.dtype]] = {
    "weights": (compressed_float("channel", None), "weight_scale", None, (1, 0), torch.bfloat16),
    "static": (compressed_float("tensor", STATIC), "weight_scale", "input_scale", (0, 0), torch.float32),
    "token": (compressed_float("channel", TOKEN), "weight_scale", None, (1, 0), torch.bfloat16),
    "blocks": (compressed_float("block", GROUP, [32, 32]), "weight_scale", None, (32, 32), torch.float32),
    "deepseek": (fine_grained("dynamic", [48, 16]), "weight_scale_inv", None, (48, 16), torch.float32),
    "whole": (fine_grained("static", None), "weight_scale_inv", "activation_scale", (0, 0), torch.float32),
    "autofp8": (fine_grained("dynamic"), "weight_scale", None, (0, 0), torch.float32),
}


def stored(kind: str, weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    """Return a weight's parts in one of the kinds, and what they mean."""
    _, scale, input_scale, (high, wide), dtype = KINDS[kind]
    high, wide = high or weight.shape[0], wide or weight.shape[1]
    numbers, scales = blocks(weight, high, wide, dtype)
    parts = {"weight": numbers, scale: scales.reshape(()) if scales.numel() == 1 else scales}
    if input_scale is not None:
        parts[input_scale] = torch.tensor(0.01 * weight.shape[1] ** 0.5 / 8)
    return parts, meaning(numbers, scales, high, wide)


def write_floats(directory: Path, kind: str, **changes: Any) -> dict[str, torch.Tensor]:
    """Write a small checkpoint of one layer in one of the kinds; return what its quantized weights mean, by name."""
    write_checkpoint(directory, num_hidden_layers=1, **changes)
    tensors, meant = load_file(directory / "model.safetensors"), {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        parts, meant[name] = stored(kind, tensors.pop(name))
        tensors |= {f"{name.removesuffix('weight')}{part}": value.contiguous() for part, value in parts.items()}
    save_file(tensors, directory / "model.safetensors")
    change_settings(directory, KINDS[kind][0])
    return meant
