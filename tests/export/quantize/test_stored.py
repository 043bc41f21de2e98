"""Numbers of quantized checkpoints are taken over bit by bit, in every layout, or the export says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from lucid_deploy.artifact import open_artifact
from lucid_deploy.artifact.quantization import PACKED, SCALES, ZEROS, Quantization
from lucid_deploy.artifact.quantized_bytes import dequantize
from lucid_deploy.cli import main
from lucid_deploy.errors import LucidError
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.export.quantize.stored import plan_stored, resolve_stored, taken_over
from lucid_deploy.export.weights import plan_weights, write_weights
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.model.packed.weight import PackedWeight
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.torch.artifact_weights import load_artifact_model
from tests.conftest import write_checkpoint
from tests.model.packed.floats import write_floats
from tests.model.packed.packing import change_settings, change_tensors, write_packed


@pytest.mark.parametrize(
    ("kind", "form", "dtype", "zeros"),
    [
        ("gptq", "qdq", "float16", False),
        ("gptq_v2", "matmulnbits", "float32", True),
        ("gptq8", "matmulnbits", "float16", False),
        ("gptq8", "qdq", "float32", False),
        ("awq", "matmulnbits", "float16", True),
        ("packed", "matmulnbits", "float32", True),
        ("packed8", "qdq", "float16", False),
    ],
)
def test_written_weights_are_what_the_layouts_formula_gives(
    kind: str, form: str, dtype: str, zeros: bool, tmp_path: Path
) -> None:
    """Without graphs; odd numbers of blocks (of 16: 112 and 144 inputs have 7 and 9) pad their zero points."""
    meant, source = write_packed(tmp_path / "c", kind), Checkpoint(tmp_path / "c")
    options = resolve_stored(source, QuantizeOptions("stored", form))
    assert options is not None
    record = plan_stored(source, options, dtype)
    assert record.tensors.keys() == meant.keys() and record.method.name == "stored"
    assert all(tensor.zero_points == zeros for tensor in record.tensors.values())
    plan = plan_weights(source.stored_shapes(), set(), dtype, record)
    write_weights(tmp_path / "weights", plan, source, record)
    data = (tmp_path / "weights").read_bytes()

    def content(name: str) -> bytearray:
        return bytearray(data[plan[name].offset : plan[name].offset + plan[name].size])

    for name, weight in meant.items():
        scales = torch.frombuffer(content(name + SCALES), dtype=getattr(torch, dtype)).double().numpy()
        points = [np.frombuffer(content(name + ZEROS), np.uint8)] if zeros else []
        found = dequantize(record, name, np.frombuffer(content(name + PACKED), np.uint8), scales, *points)
        assert np.array_equal(found, weight.numpy())


@pytest.mark.parametrize(
    ("kind", "dtype", "activations", "size"),
    [
        ("weights", "float16", "float", None),
        ("static", "bfloat16", "fp8-static", None),
        ("token", "float32", "fp8-token", None),
        ("blocks", "float16", "fp8-group", 16),
        ("deepseek", "bfloat16", "fp8-group", 16),
        ("whole", "float32", "fp8-static", None),
        ("autofp8", "float32", "fp8-token", None),
    ],
)
def test_numbers_in_fp8_are_the_checkpoint_s(
    kind: str, dtype: str, activations: str, size: int | None, tmp_path: Path
) -> None:
    """In half precision too, since scales are float32; without graphs."""
    meant, source = write_floats(tmp_path / "c", kind), Checkpoint(tmp_path / "c")
    options = resolve_stored(source, None)
    assert options is not None
    record = plan_stored(source, options, dtype)
    assert (record.scheme, record.format, record.activations, record.input_block) == ("fp8", "qdq", activations, size)
    assert record.tensors.keys() == meant.keys() and msgspec.convert(record.to_dict(), Quantization) == record
    plan = plan_weights(source.stored_shapes(), set(), dtype, record)
    write_weights(tmp_path / "weights", plan, source, record)
    data = (tmp_path / "weights").read_bytes()
    for name, weight in meant.items():
        packed, scales = (
            np.frombuffer(data, np.uint8, plan[name + part].size, plan[name + part].offset) for part in (PACKED, SCALES)
        )
        assert np.array_equal(dequantize(record, name, packed, scales.view(np.float32)), weight.numpy())
    plain = resolve_stored(source, QuantizeOptions("stored", activations="float"))
    assert plain is not None and plan_stored(source, plain, dtype).activations == "float"


def test_an_artifact_in_fp8_rounds_its_inputs(tmp_path: Path) -> None:
    """Through graphs: onnxruntime gives PyTorch's logits with rounded inputs, not those without; verify passes."""
    meant = write_floats(tmp_path / "c", "blocks")
    artifact = export(tmp_path / "c", tmp_path / "a")
    model = load_artifact_model(artifact, dtype="float64").state_dict()
    assert all(model[name].equal(weight) for name, weight in meant.items())
    ids = np.arange(12, dtype=np.int64)[None]
    found, rounded = (open_session(artifact, runtime) for runtime in ("onnxruntime", "torch"))
    assert found.rounded_inputs == rounded.rounded_inputs == "fp8"
    logits, wanted = (session.prefill(ids, session.empty_cache(1)) for session in (found, rounded))
    exact = load_artifact_model(artifact, dtype="float64")(torch.from_numpy(ids))[0][:, -1:].float().numpy()
    off, rounding = (np.linalg.norm(other - wanted) for other in (logits, exact))
    assert off < 0.01 * rounding, "a number near a tie may round to the other side; the error stays below rounding's"
    checked = CliRunner().invoke(main, ["verify", str(tmp_path / "a"), "--quick", "--json", str(tmp_path / "v.json")])
    assert checked.exit_code == 0, checked.output
    assert "7 are the checkpoint's numbers exactly" in (tmp_path / "v.json").read_text()


def test_negative_scales_are_refused_by_name(tmp_path: Path) -> None:
    """TensorRT accepts none; the refusal comes before anything is exported."""
    write_floats(tmp_path / "c", "token")
    change_tensors(tmp_path / "c", lambda tensors: tensors["model.layers.0.mlp.up_proj.weight_scale"][3].neg_())
    with pytest.raises(LucidError, match=r"layers\.0\.mlp\.up_proj has negative scales, which TensorRT cannot use"):
        plan_stored(Checkpoint(tmp_path / "c"), QuantizeOptions("stored", "qdq"), "float32")


def test_an_artifact_with_zero_points_has_the_checkpoints_weights(tmp_path: Path) -> None:
    """Through graphs, the reference and onnxruntime: PyTorch's weights are equal, and verify passes."""
    meant = write_packed(tmp_path / "c", "awq")
    told = CliRunner().invoke(main, ["export", str(tmp_path / "c"), "-o", str(tmp_path / "a")])
    assert told.exit_code == 0, told.output
    assert "The numbers are those of the checkpoint, which awq has quantized." in " ".join(told.output.split())
    artifact = open_artifact(tmp_path / "a")
    assert artifact.manifest.options["quantize"]["scheme"] == "stored"
    model = load_artifact_model(artifact, dtype="float64").state_dict()
    assert all(model[name].equal(weight) for name, weight in meant.items())
    checked = CliRunner().invoke(main, ["verify", str(tmp_path / "a"), "--quick", "--json", str(tmp_path / "v.json")])
    assert checked.exit_code == 0, checked.output
    assert "7 are the checkpoint's numbers exactly" in (tmp_path / "v.json").read_text()

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.mlp.up_proj.qzeros"][0, 0] ^= 1

    change_tensors(tmp_path / "c", spoil)
    checked = CliRunner().invoke(main, ["verify", str(tmp_path / "a"), "--quick"])
    assert checked.exit_code == 1 and "16 elements differ" in " ".join(checked.output.split())


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "awq",
            ExportOptions(quantize=QuantizeOptions("int4")),
            r"quantized already \(awq, 4 bits\).*--quantize stored",
        ),
        ("awq", ExportOptions(quantize=QuantizeOptions("stored", "qdq")), "up_proj has zero points|has zero points"),
        ("awq", ExportOptions(dtype="bfloat16"), "no bfloat16 kernel"),
        ("gptq", ExportOptions("bfloat16", quantize=QuantizeOptions("stored", "qdq")), "that bfloat16 would round"),
        ("gptq", ExportOptions(quantize=QuantizeOptions("stored", block_size=32)), "leave out --block-size"),
        ("gptq", ExportOptions(quantize=QuantizeOptions("stored", method="distill")), "leave out --method"),
        ("gptq", ExportOptions(quantize=QuantizeOptions("stored", keep_float=("a",))), "leave out --keep-float"),
        (None, ExportOptions(quantize=QuantizeOptions("stored")), "not quantized, so there are no quantized values"),
    ],
)
def test_options_that_do_not_fit_are_refused(kind: str | None, options: Any, message: str, tmp_path: Path) -> None:
    if kind is None:
        write_checkpoint(tmp_path / "c", num_hidden_layers=1)
    else:
        write_packed(tmp_path / "c", kind)
    with pytest.raises(LucidError, match=message) as caught:
        export(tmp_path / "c", tmp_path / "out" / "a", options)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def regroup(checkpoint: Path, size: int) -> None:
    """Give a checkpoint in the format gptq groups of another size; scales grow with the group."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(("scales", "qzeros", "g_idx"))]:
            module, part = name.rsplit(".", 1)
            width = tensors[f"{module}.qweight"].shape[0] * 8
            groups = -(-width // size)
            if part == "g_idx":
                tensors[name] = (torch.arange(width) // size).to(torch.int32)
            elif part == "scales":
                steps = 1 + torch.arange(groups)[:, None] / 4
                tensors[name] = (tensors[name][:1].float() * steps).half()
            else:
                tensors[name] = tensors[name][:1].expand(groups, -1).contiguous()

    change_tensors(checkpoint, change)
    change_settings(checkpoint, {"quant_method": "gptq", "bits": 4, "group_size": size})


@pytest.mark.parametrize(("form", "blocks"), [("qdq", (64, 16)), ("matmulnbits", (64, 64))])
def test_groups_that_do_not_divide_a_row_become_smaller_blocks(
    form: str, blocks: tuple[int, int], tmp_path: Path
) -> None:
    """Rows of 64, 112 and 144 inputs in groups of 64: qdq has no shorter last block, so blocks of 16 repeat scales."""
    write_packed(tmp_path / "c", "gptq")
    regroup(tmp_path / "c", 64)
    source = Checkpoint(tmp_path / "c")
    record = plan_stored(source, QuantizeOptions("stored", form), "float32")
    for name, tensor in record.tensors.items():
        assert tensor.block_size == blocks[tensor.shape[1] != 64]
        weight = source.packed_weight(name)
        assert isinstance(weight, PackedWeight)
        packed, scales, zeros = taken_over(weight, tensor)
        assert zeros is None and scales.shape == packed.shape[:2] == (tensor.shape[0], tensor.blocks)
        codes = (
            np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1)[:, : tensor.shape[1]].astype(float) - 8
        )
        wide = scales.double().repeat_interleave(tensor.block_size, 1)[:, : tensor.shape[1]].numpy()
        assert np.array_equal(codes * wide, source.tensor(name).double().numpy())


def test_scales_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    write_packed(tmp_path / "c", "gptq")

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.mlp.up_proj.scales"][0, 0] = float("inf")

    change_tensors(tmp_path / "c", spoil)
    with pytest.raises(LucidError, match="up_proj has scales that are not finite"):
        plan_stored(Checkpoint(tmp_path / "c"), QuantizeOptions("stored"), "float32")
