"""Quantized layouts against the functions of packages that write or read them."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from lucid_deploy.model.packed.settings import awq_layout, compressed_layout, gptq_layout
from tests.compat.environments import packages_beside
from tests.model.packed.packing import SETTINGS, compressed_settings, numbers, stored

pytestmark = pytest.mark.compat

AUTO_GPTQ, COMPRESSED = "auto-gptq==0.7.1", "compressed-tensors==0.20.0"
WEIGHT = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))


def functions_of(path: Path, *names: str) -> dict[str, Any]:
    """Return some functions of a file whose imports are not all installed."""
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    found: dict[str, Any] = {"torch": torch}
    exec(compile(tree, str(path), "exec"), found)
    return found


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"published_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_packed_by_its_package(bits: int) -> None:
    module = load(packages_beside(AUTO_GPTQ) / "auto_gptq" / "nn_modules" / "qlinear" / "qlinear_cuda_old.py")
    codes, zeros, scales = numbers(WEIGHT, bits, 32, False)
    zeros = zeros.clamp(min=1)
    group = torch.arange(128) // 32
    linear = torch.nn.Linear(128, 64, bias=False).half()
    linear.weight.data = ((codes.float() - zeros.float()[:, group]) * scales.float()[:, group]).half()
    theirs = module.QuantLinear(bits, 32, 128, 64, bias=False, weight_dtype=torch.float16)
    theirs.pack(linear, scales.float(), zeros.float(), None)
    parts = {name: getattr(theirs, name) for name in ("qweight", "qzeros", "scales", "g_idx")}
    found = gptq_layout({"bits": bits, "group_size": 32}).read(parts)
    assert found.zeros.equal(zeros) and found.scales.equal(scales)
    assert found.codes.int().sub(codes.int()).abs().max() <= (0 if bits == 4 else 1), "they round from float16 again"


def test_awq_unpacked_by_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    path = packages_beside(AUTO_GPTQ) / "auto_gptq" / "modeling" / "_utils.py"
    published = functions_of(path, "unpack_awq", "awq_reverse_reorder_int_tensor")
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    parts, meant = stored("awq", WEIGHT)
    theirs, zeros = published["unpack_awq"](parts["qweight"], parts["qzeros"], parts["scales"].float(), 4, 16)
    found = awq_layout(SETTINGS["awq"]).read(parts)
    assert found.dequantize().double().equal(meant)
    assert (theirs.float() - found.dequantize()).abs().max() < 2**-9 * meant.abs().max(), "they subtract in float16"
    assert found.zeros.mT.equal(zeros.to(torch.uint8))


@pytest.mark.parametrize("bits", [4, 8])
def test_compressed_packed_by_its_package(bits: int) -> None:
    path = packages_beside(COMPRESSED) / "compressed_tensors" / "compressors" / "pack_quantized" / "helpers.py"
    published = load(path)
    codes, zeros, scales = numbers(WEIGHT, bits, 32, False)
    half = 1 << (bits - 1)
    signed, points = (part.int().sub(half).to(torch.int8) for part in (codes, zeros))
    parts = {
        "weight_packed": published.pack_to_int32(signed, bits),
        "weight_zero_point": published.pack_to_int32(points, bits, packed_dim=0),
        "weight_scale": scales,
        "weight_shape": torch.tensor(WEIGHT.shape),
    }
    found = compressed_layout(compressed_settings("pack-quantized", bits, "group", 32, False)).read(parts)
    assert found.codes.equal(codes) and found.zeros.equal(zeros)
