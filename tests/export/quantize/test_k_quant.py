"""onnxruntime's k-quant numbers: read back as the operator reads them, and never worse than the nearest ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from lucid_deploy.artifact.quantization import Quantization, QuantizedTensor
from lucid_deploy.artifact.quantized_bytes import dequantize
from lucid_deploy.cli import main
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.export.quantize.k_quant import k_quant_matrix
from lucid_deploy.export.quantize.nearest import quantize_matrix
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.parity.stored_weights import check_weights
from tests.conftest import write_checkpoint


def nearest(weight: torch.Tensor, tensor: QuantizedTensor, bits: int) -> np.ndarray:
    record = Quantization(f"int{bits}", bits, "matmulnbits", "int8", {"w": tensor}, (), "onnxruntime")
    packed, scales = (np.concatenate(part) for part in zip(*quantize_matrix(weight, tensor, bits), strict=True))
    return dequantize(record, "w", packed.reshape(-1), scales)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("size", [1e-9, 1e-7, 4e-7, 1e-6, 1e-4, 1.0])
def test_small_weights_are_never_further_off_than_the_nearest(size: float, dtype: str) -> None:
    """With scales as they are stored: float16 has none between 0 and 6e-8, nor many above."""
    weight = torch.randn(64, 91, generator=torch.Generator().manual_seed(0)) * size  # with a block that is padded
    tensor, plain = QuantizedTensor((64, 91), 32, zero_points=True), QuantizedTensor((64, 91), 32)
    exact = weight.double().numpy()

    def lost_by(found: np.ndarray) -> np.ndarray:
        return np.linalg.norm(np.pad(found - exact, ((0, 0), (0, 5))).reshape(-1, 32), axis=1)

    def stored(scales: np.ndarray) -> np.ndarray:
        return torch.from_numpy(scales).to(getattr(torch, dtype)).float().numpy()

    for bits in (4, 8):
        record = Quantization(f"int{bits}", bits, "matmulnbits", "int8", {"w": tensor, "v": plain}, (), "onnxruntime")
        packed, scales, zeros = k_quant_matrix(weight, tensor, bits, dtype)
        assert np.array_equal(stored(scales), scales)
        found = dequantize(record, "w", packed.reshape(-1), scales, zeros.reshape(-1))
        numbers, factors = (np.concatenate(part) for part in zip(*quantize_matrix(weight, plain, bits), strict=True))
        other = dequantize(record, "v", numbers.reshape(-1), stored(factors))
        assert (lost_by(found) <= lost_by(other) * (1 + 1e-6)).all()


def test_an_artifact_of_such_numbers(tmp_path: Path) -> None:
    """It is what `verify` computes, its weights are checked, another checkpoint's are found, TensorRT is refused."""
    checkpoint = write_checkpoint(tmp_path / "c", tie_word_embeddings=True)
    artifact = export(checkpoint, tmp_path / "a", ExportOptions(quantize=QuantizeOptions("int4", method="k_quant")))
    record = artifact.manifest.quantization
    assert record is not None and record.method.name == "k_quant" and record.tool.startswith("onnxruntime")
    assert {name for name, tensor in record.tensors.items() if not tensor.zero_points} == {"model.embed_tokens.weight"}
    result = CliRunner().invoke(main, ["verify", str(tmp_path / "a"), "--checkpoint", str(checkpoint), "--quick"])
    assert result.exit_code == 0 and "(int4, k_quant, " in " ".join(result.output.split()), result.output

    class Changed(Checkpoint):
        def tensor(self, name: str) -> torch.Tensor:
            value = super().tensor(name).clone()
            if name == "model.layers.1.mlp.up_proj.weight":
                value[3, 5] += 0.5 * value[3, :32].abs().max()
            return value

    with pytest.raises(CheckFailed, match=r"layers\.1\.mlp\.up_proj\.weight is not .* row 3, column 5 is off by"):
        check_weights(artifact, Changed(checkpoint))
    options = QuantizeOptions("int4", "qdq", method="k_quant")
    with pytest.raises(LucidError, match="zero points, which TensorRT does not take"):
        export(checkpoint, tmp_path / "b", ExportOptions(quantize=options))
