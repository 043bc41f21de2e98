"""Weights and inputs in E4M3 and NVFP4 against the packages that define them: compressed-tensors and ModelOpt.

The packages run in a process of their own, since they change what they import.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lucid_deploy.artifact.quantized_bytes import E2M1, E4M3
from lucid_deploy.export.quantize.floats import round_to_fp8, round_to_nvfp4
from lucid_deploy.model.packed.settings import compressed_layout
from lucid_deploy.runtimes.torch.quantized_activations import round_to_fp8 as round_inputs_to_fp8
from tests.compat.environments import packages_beside
from tests.model.packed.floats import GROUP, STATIC, TOKEN, compressed_float

pytestmark = pytest.mark.compat

COMPRESSED = ("compressed-tensors==0.20.0", "loguru==0.7.3", "frozendict==2.4.6")
MODELOPT = ("nvidia-modelopt==0.47.0", "omegaconf==2.3.0", "antlr4-python3-runtime==4.9.3", "pulp==3.3.0")
WEIGHT = torch.randn(80, 128, generator=torch.Generator().manual_seed(0)) * 0.05
WEIGHT[3, :16] = 0.0  # a block of zeros
WEIGHT[5, 16:32] *= 1e-6  # and one whose scale is less than E4M3 has
INPUTS = torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 1, 5)[:, None]


def computed(packages: tuple[str, ...], code: str, tensors: dict[str, Any], folder: Path) -> dict[str, torch.Tensor]:
    """Run code on tensors in ``given`` beside some packages, and return what it puts into ``found``."""
    save_file(tensors, folder / "given")
    script = "import torch\nfrom safetensors.torch import load_file, save_file\ngiven, found = load_file('given'), {}\n"
    path = str(packages_beside(*packages))
    end = "\nsave_file({name: value.contiguous() for name, value in found.items()}, 'found')\n"
    command = [sys.executable, "-c", script + code + end]
    subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, check=True, capture_output=True)
    return load_file(folder / "found")


BLOCKS = {"tensor": (80, 128), "channel": (1, 128), "block": (32, 64)}  # what has one scale


def scales(high: int, wide: int) -> torch.Tensor:
    """Return the scale of each block of the weight."""
    rows = (rows.split(wide, dim=1) for rows in WEIGHT.split(high))
    return torch.stack([torch.stack([block.abs().max() / 448 for block in row]) for row in rows])


def test_weights_of_compressed_tensors(tmp_path: Path) -> None:
    code = f"""
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
compressor = BaseCompressor.get_value_from_registry("float-quantized")
for strategy, block in {BLOCKS!r}.items():
    structure = list(block) if strategy == "block" else None
    args = QuantizationArgs(num_bits=8, type="float", strategy=strategy, block_structure=structure)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    parts = compressor.compress({{"weight": given["weight"], "weight_scale": given[strategy]}}, scheme)
    parts["whole"] = compressor.decompress(parts, scheme)["weight"]
    found |= {{f"{{strategy}} {{name}}": part for name, part in parts.items()}}
"""
    given = {strategy: scales(*block) for strategy, block in BLOCKS.items()}
    given["tensor"] = given["tensor"].reshape(1)
    theirs = computed(COMPRESSED, code, {"weight": WEIGHT, **given}, tmp_path)
    for strategy, block in BLOCKS.items():
        layout = compressed_layout(compressed_float(strategy, None, list(block) if strategy == "block" else None))
        parts = {name: theirs[f"{strategy} {name}"] for name in ("weight", "weight_scale")}
        assert layout.shape({name: tuple(part.shape) for name, part in parts.items()}) == (80, 128), strategy
        assert layout.read(parts).dequantize().float().equal(theirs[f"{strategy} whole"]), strategy


def test_inputs_of_compressed_tensors(tmp_path: Path) -> None:
    tried = [(STATIC, 0.004, None), (TOKEN, None, None), (GROUP, None, 16)]
    code = f"""
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import forward_quantize
from compressed_tensors.quantization import QuantizationStatus
for place, (settings, scale, size) in enumerate({tried!r}):
    args = QuantizationArgs(num_bits=8, type="float", **settings)
    module = torch.nn.Linear(128, 4)
    module.quantization_status = QuantizationStatus.FROZEN
    module.input_scale = torch.tensor([scale or 1.0])
    found[str(place)] = forward_quantize(module, given["inputs"], "input", args)
"""
    theirs = computed(COMPRESSED, code, {"inputs": INPUTS}, tmp_path)
    for place, (_, scale, size) in enumerate(tried):
        assert round_inputs_to_fp8(INPUTS, scale, size).equal(theirs[str(place)]), place


def test_scales_and_numbers_of_modelopt(tmp_path: Path) -> None:
    code = """
from modelopt.torch.quantization.qtensor import FP8QTensor, NVFP4QTensor
whole, scale = FP8QTensor.quantize(given["weight"])
found["fp8"], found["fp8 scale"] = whole._quantized_data, scale.reshape(1)
packed, scales, second = NVFP4QTensor.quantize(given["weight"], 16)
found["fp4"], found["fp4 scales"], found["fp4 whole"] = packed._quantized_data, scales, second.reshape(1)
found["fp4 weight"] = packed.dequantize(torch.float32, scale=scales, double_scale=second, block_sizes={-1: 16})
"""
    theirs = computed(MODELOPT, code, {"weight": WEIGHT}, tmp_path)
    codes, scale = round_to_fp8(WEIGHT)
    assert torch.from_numpy(codes).equal(theirs["fp8"].view(torch.uint8)) and scale == theirs["fp8 scale"].item()
    numbers, scales, whole = round_to_nvfp4(WEIGHT)
    assert whole == theirs["fp4 whole"].item()
    assert torch.from_numpy(scales).equal(theirs["fp4 scales"].view(torch.uint8))
    values = torch.from_numpy(E2M1[numbers]).unflatten(1, (-1, 16)) * torch.from_numpy(E4M3[scales] * whole)[..., None]
    assert values.flatten(1).equal(theirs["fp4 weight"])
