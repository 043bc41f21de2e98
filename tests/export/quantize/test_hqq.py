"""HQQ: its weights against the published steps as plain loops, artifacts with them, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact
from lucid_deploy.artifact.quantization import Quantization, QuantizedTensor
from lucid_deploy.artifact.quantized_bytes import dequantize
from lucid_deploy.cli import main
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.export.quantize.hqq import hqq_matrix
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.export.quantize.plan import plan_quantization
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.parity.gate import FACTOR
from lucid_deploy.parity.stored_weights import compare_weights

BIASED = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
TENSOR = QuantizedTensor((24, 128), 32, offsets=True)
WEIGHT = torch.randn(24, 128, generator=torch.Generator().manual_seed(0)) * 0.05


def dense(weight: torch.Tensor, bits: int, dtype: str = "float32") -> np.ndarray:
    """Return the weight that the stored parts dequantize to."""
    record = Quantization(f"int{bits}", bits, "matmulnbits", "int8", {"w": TENSOR}, (), "a tool")
    packed, scales, offsets = hqq_matrix(weight, TENSOR, bits, dtype)
    assert record.parts("w") == (".packed", ".scales", ".offsets")
    assert packed.shape == record.part_shape("w", ".packed") and offsets.mT.shape == record.part_shape("w", ".offsets")
    return dequantize(record, "w", packed.reshape(-1), scales.numpy(), offsets.mT.numpy().reshape(-1))


@dataclass
class Published:
    """What the steps of the description give.

    Attributes:
        values: Dequantized values of the blocks, ``(blocks, 32)``.
        places: The numbers that each step rounds to whole ones, ``(steps, blocks, 32)``.
        shrunk: Whether any error was larger than what counts as an outlier.
    """

    values: np.ndarray
    places: np.ndarray
    shrunk: bool


def published(weight: np.ndarray, bits: int, kind: type = np.float64) -> Published:
    """Compute the steps in a type: s and z from a block's range, then z from shrunk errors, up to 20 times."""
    blocks, top = weight.astype(kind).reshape(-1, 32), 2**bits - 1
    low, high = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
    s, best, places, shrunk = top / (high - low), np.inf, [], False
    z = -low * s
    for _ in range(20):
        places.append(blocks * s + z)
        q = np.clip(np.rint(places[-1]), 0, top)
        error = blocks - (q - z) / s
        with np.errstate(divide="ignore"):
            e = np.sign(error) * np.maximum(np.abs(error) - np.abs(error) ** kind(0.7 - 1) / 10, 0)
        shrunk = shrunk or bool(e.any())
        z = np.mean(q - (blocks - e) * s, axis=1, keepdims=True)
        if np.abs(error).mean(dtype=np.float64) >= best:
            break
        best = np.abs(error).mean(dtype=np.float64)
    places.append(blocks * s + z)
    assert s.dtype == z.dtype == kind
    return Published((np.clip(np.rint(places[-1]), 0, top) - z) / s, np.array(places, np.float64), shrunk)


def rounds_alike(exact: Published, plain: Published) -> np.ndarray:
    """Return the blocks, ``(blocks,)``, in which no number lies so near to a tie that float32's error decides it.

    Too near is less than FACTOR times float32's largest error in blocks where it rounds all numbers as float64 does.
    """
    assert exact.places.shape == plain.places.shape, "rounding changes the number of steps: choose another weight"
    same = (np.rint(exact.places) == np.rint(plain.places)).all(axis=(0, 2))
    rounding = np.abs(exact.places - plain.places)[:, same].max()
    margin = np.abs(exact.places - np.floor(exact.places) - 0.5).min(axis=(0, 2))
    decided: np.ndarray = margin > FACTOR * rounding
    assert decided.mean() > 0.5, "most blocks must be judged"
    return decided


@pytest.mark.parametrize("size", [1, 1000], ids=["no outliers", "outliers"])
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_are_those_of_the_published_steps(bits: int, size: int) -> None:
    """As exact as the steps in plain float32; errors of large weights are shrunk, those of small ones to zero."""
    weight = WEIGHT * size
    exact, plain = (published(weight.numpy(), bits, kind) for kind in (np.float64, np.float32))
    assert exact.shrunk == (size > 1)
    judged, found = rounds_alike(exact, plain), dense(weight, bits).reshape(-1, 32)
    own = np.abs(plain.values - exact.values)[judged].max()
    assert np.abs(found - exact.values)[judged].max() <= FACTOR * own


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_blocks_with_awkward_values_stay_within_rounding(dtype: str) -> None:
    """Blocks of zeros, of equal elements, far from zero, and so small that the package makes them zeros."""
    parts = (torch.zeros(24, 32), torch.full((24, 32), 0.25), torch.linspace(5, 6, 32).expand(24, 32))
    weight = torch.cat([*parts, WEIGHT[:, :32] * 1e-4], dim=1)
    found, exact = dense(weight, 4, dtype), weight.double().numpy()
    rounding = {"float32": 2.0**-22, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    assert not found[:, :32].any() and (np.abs(found - exact)[:, 32:64] <= rounding * 0.25).all()
    assert (np.abs(found - exact)[:, 64:96] <= 0.5 / 15 * 1.01 + 6.5 * rounding).all()
    small, least = exact[:, 96:], 2.0**-25 if dtype == "float16" else 0.0
    assert (
        np.abs(found[:, 96:] - small) <= (small.max() - small.min()) / 15 * (0.6 + 16 * rounding) + 16 * least
    ).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("value", [0.0, 0.01, -3.1, 1e-37])
def test_blocks_of_one_value_are_their_offset(value: float, bits: int, dtype: str) -> None:
    """No large terms have to cancel, since a runtime may round the inputs of only one of the two multiplications."""
    weight = torch.cat([torch.full((24, 32), value), WEIGHT[:, :96]], dim=1)
    weight[3, :32] = torch.linspace(0, 1e-38, 32)  # narrower than a scale can be
    packed, scales, offsets = hqq_matrix(weight, TENSOR, bits, dtype)
    stored = getattr(torch, dtype)
    assert (offsets[[0, 1, 23], 0] == torch.tensor(value).to(stored).float()).all() and offsets.isfinite().all()
    half = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    error = np.abs(dense(weight, bits, dtype)[:, :32] - weight[:, :32].double().numpy())
    assert (error <= half * abs(value) + (2.0**-25 if dtype == "float16" else 2.0**-126)).all()
    record = Quantization(f"int{bits}", bits, "matmulnbits", "int8", {"w": TENSOR}, (), "a tool")
    alone = dequantize(record, "w", packed.reshape(-1), scales.numpy(), np.zeros(offsets.numel(), np.float32))
    assert (np.abs(alone[:, :32]) <= half * abs(value)).all(), "what the offset's own rounding leaves"


def test_an_hqq_artifact_is_verified_against_its_checkpoint(quantized: Callable[..., tuple[Path, Artifact]]) -> None:
    """`verify` passes, also its comparison of weights, which finds the weights of another checkpoint."""
    checkpoint, artifact = quantized("int4", block_size=16, method="hqq", changes=BIASED)
    record = artifact.manifest.quantization
    assert record is not None and record.method.name == "hqq" and record.tool.startswith("lucid-deploy")
    assert [name for name, tensor in record.tensors.items() if not tensor.offsets] == ["model.embed_tokens.weight"]
    result = CliRunner().invoke(main, ["verify", str(artifact.directory), "--checkpoint", str(checkpoint), "--quick"])
    assert result.exit_code == 0, result.output

    class Changed(Checkpoint):
        def tensor(self, name: str) -> torch.Tensor:
            value = super().tensor(name).clone()
            if name == "model.layers.0.mlp.up_proj.weight":
                value[3, 5] += 0.5 * value[3, :16].abs().max()
            return value

    with pytest.raises(CheckFailed, match=r"layers\.0\.mlp\.up_proj\.weight is not .* row 3, column 5 is off by"):
        compare_weights(artifact, Changed(checkpoint))


def test_rows_that_no_block_divides_are_refused() -> None:
    with pytest.raises(LucidError, match=r"rows of 40 .* --method hqq needs a multiple of 16.*--keep-float"):
        plan_quantization({"model.layers.0.mlp.up_proj.weight": (8, 40)}, False, QuantizeOptions("int4", method="hqq"))
    plan = plan_quantization(
        {"model.layers.0.mlp.up_proj.weight": (8, 48)}, False, QuantizeOptions("int4", method="hqq")
    )
    assert plan.block_size == 16 and plan.bits_per_weight("float32") == 4 + 32 / 16
