"""Write weights in the layouts of other tools, number by number: loops over the published formulas, in no hurry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.conftest import write_checkpoint

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # AutoAWQ: the output whose number comes next in a word
Parts = dict[str, torch.Tensor]


def words(rows: torch.Tensor, bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """Pack numbers along the last axis into int32, the first one lowest; ``order`` says which comes next."""
    many, width = 32 // bits, rows.shape[1]
    packed = [[0] * -(-width // many) for _ in range(rows.shape[0])]
    for row, given in enumerate(rows.tolist()):
        for word in range(len(packed[row])):
            for place in range(many):
                column = word * many + (order[place] if order else place)
                if column < width:
                    packed[row][word] |= int(given[column]) << (bits * place)
    found = torch.tensor(packed, dtype=torch.int64)
    return torch.where(found >= 2**31, found - 2**32, found).to(torch.int32)


def numbers(weight: torch.Tensor, bits: int, group: int, symmetric: bool) -> tuple[torch.Tensor, ...]:
    """Return codes ``(out, in)``, zero points and scales in float16 ``(out, groups)`` that are near a weight."""
    width, high = weight.shape[1], (1 << bits) - 1
    codes, zeros, scales = [], [], []
    for start in range(0, width, group):
        block = weight[:, start : start + group]
        least, most = block.amin(1, keepdim=True).clamp(max=0), block.amax(1, keepdim=True).clamp(min=0)
        if symmetric:
            most = torch.maximum(-least, most)
            least = -most
        scale = ((most - least) / high).clamp(min=1e-4).half()
        zero = torch.full_like(scale, (high + 1) / 2) if symmetric else (-least / scale).round().clamp(1, high)
        codes.append((block / scale.float() + zero).round().clamp(0, high))
        zeros.append(zero)
        scales.append(scale)
    return torch.cat(codes, 1).to(torch.uint8), torch.cat(zeros, 1).to(torch.uint8), torch.cat(scales, 1)


def gptq(codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, bits: int, less_one: bool = True) -> Parts:
    """AutoGPTQ; in its first format zero points less one."""
    stored = (zeros.int() - int(less_one)).mT
    width, group = codes.shape[1], -(-codes.shape[1] // zeros.shape[1])
    return {
        "qweight": words(codes, bits).mT.contiguous(),
        "qzeros": words(stored, bits),
        "scales": scales.mT.contiguous(),
        "g_idx": (torch.arange(width) // group).to(torch.int32),
    }


def awq(codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor) -> Parts:
    """AutoAWQ, gemm."""
    return {
        "qweight": words(codes.mT, 4, AWQ_ORDER),
        "qzeros": words(zeros.mT, 4, AWQ_ORDER),
        "scales": scales.mT.contiguous(),
    }


def compressed(codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, bits: int, symmetric: bool) -> Parts:
    """compressed-tensors, pack-quantized."""
    parts = {
        "weight_packed": words(codes, bits),
        "weight_scale": scales,
        "weight_shape": torch.tensor(codes.shape),
    }
    return parts if symmetric else {**parts, "weight_zero_point": words(zeros.mT, bits).mT.contiguous()}


def compressed_settings(form: str, bits: int, strategy: str, group: int | None, symmetric: bool) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy, "group_size": group}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups, "ignore": ["lm_head"]}


KINDS = ("gptq", "gptq_v2", "gptq8", "awq", "packed", "packed8")


def stored(kind: str, weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    """Return a weight's parts in one of the kinds, and what they mean: float64 ``(out, in)`` by the formula."""
    bits = 8 if kind in ("gptq8", "packed8") else 4
    group = weight.shape[1] if kind in ("gptq8", "packed8") else 16
    symmetric = kind in ("gptq", "gptq8", "packed8")
    codes, zeros, scales = numbers(weight, bits, group, symmetric)
    meant = torch.zeros(weight.shape, dtype=torch.float64)
    for column in range(weight.shape[1]):
        place = column // group
        meant[:, column] = (codes[:, column].double() - zeros[:, place].double()) * scales[:, place].double()
    if kind.startswith("gptq"):
        return gptq(codes, zeros, scales, bits, less_one=kind != "gptq_v2"), meant
    if kind == "awq":
        return awq(codes, zeros, scales), meant
    return compressed(codes, zeros, scales, bits, symmetric), meant


SETTINGS: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": True},
    "gptq_v2": {"quant_method": "gptq", "bits": 4, "group_size": 16, "sym": False, "checkpoint_format": "gptq_v2"},
    "gptq8": {"quant_method": "gptq", "bits": 8, "group_size": -1, "sym": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm"},
    "packed": compressed_settings("pack-quantized", 4, "group", 16, False),
    "packed8": compressed_settings("pack-quantized", 8, "channel", None, True),
}


def write_packed(directory: Path, kind: str, **changes: Any) -> dict[str, torch.Tensor]:
    """Write a small checkpoint of one layer in one of the kinds; return what its quantized weights mean, by name."""
    write_checkpoint(directory, num_hidden_layers=1, **changes)
    tensors, meant = load_file(directory / "model.safetensors"), {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        parts, meant[name] = stored(kind, tensors.pop(name))
        tensors |= {f"{name.removesuffix('weight')}{part}": value.contiguous() for part, value in parts.items()}
    save_file(
        {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()},
        directory / "model.safetensors",
    )
    change_settings(directory, SETTINGS[kind])
    return meant


def change_settings(directory: Path, settings: Any) -> None:
    """Put ``quantization_config`` into ``config.json``."""
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": settings}))


def change_tensors(directory: Path, change: Any) -> None:
    """Change the tensors of a checkpoint; ``change`` is given the dictionary."""
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")
