"""Quantized weights are the checkpoint's to within half a step, in the files and graphs of both formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.cli.export import command as export_command
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.export.quantize.plan import plan_quantization
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.parity.stored_weights import compare_weights
from lucid_deploy.runtimes.torch.artifact_weights import load_artifact_model

Made = Callable[..., tuple[Path, Artifact]]
BIASED = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}


def read_parts(artifact: Artifact, name: str) -> tuple[onnx.TensorProto, np.ndarray, np.ndarray]:
    """The packed tensor's description, its bytes, and the scales, read from the file by what the graph says alone."""
    graph = onnx.load(str(artifact.graph_path("prefill")), load_external_data=False).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    data = artifact.path("weights.bin").read_bytes()

    def content(tensor: onnx.TensorProto, kind: Any) -> np.ndarray:
        place = {entry.key: int(entry.value) for entry in tensor.external_data if entry.key != "location"}
        return np.frombuffer(data, kind, offset=place["offset"], count=place["length"] // np.dtype(kind).itemsize)

    packed, scales = tensors[f"{name}.packed"], tensors[f"{name}.scales"]
    kind = {onnx.TensorProto.FLOAT: np.float32, onnx.TensorProto.FLOAT16: np.float16}[scales.data_type]
    return packed, content(packed, np.uint8), content(scales, kind).astype(np.float64).reshape(tuple(scales.dims))


def dequantize(packed: onnx.TensorProto, data: np.ndarray, scales: np.ndarray, width: int, block: int) -> Any:
    """The operators' documentation as plain loops: numbers and scale of each element, ``(out, in)``."""
    int4 = packed.data_type == onnx.TensorProto.INT4
    if packed.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.INT8):  # DequantizeLinear along axis 0
        columns = packed.dims[1]
        numbers, steps = np.zeros((columns, width)), np.zeros((columns, width))
        for k in range(width):
            for n in range(columns):
                flat = k * columns + n
                raw = (data[flat // 2] >> 4 * (flat % 2)) & 15 if int4 else data[flat]
                numbers[n, k] = (raw + 8) % 16 - 8.0 if int4 else np.int8(raw)
                steps[n, k] = scales[k // block, n]
        return numbers, steps
    rows, blocks, blob = packed.dims  # MatMulNBits
    bits = 8 * blob // block
    view = data.reshape(rows, blocks, blob)
    numbers, steps = np.zeros((rows, width)), np.zeros((rows, width))
    for n in range(rows):
        for k in range(width):
            inner = k % block
            raw = view[n, k // block, inner * bits // 8]
            numbers[n, k] = (int(raw >> 4 * (inner % 2)) & 15) - 8 if bits == 4 else int(raw) - 128
            steps[n, k] = scales[n, k // block]
    return numbers, steps


@pytest.mark.parametrize(
    ("scheme", "form", "dtype"),
    [
        ("int4", "matmulnbits", "float16"),
        ("int8", "qdq", "float32"),
    ],
)
def test_stored_bytes_are_within_half_a_step(scheme: str, form: str, dtype: str, quantized: Made) -> None:
    checkpoint, artifact = quantized(scheme, form, dtype, block_size=32)
    source, record = Checkpoint(checkpoint), artifact.manifest.quantization
    model = load_artifact_model(artifact, dtype="float64").state_dict()
    top = {"int8": 127, "int4": 7}[scheme]
    for name in ("model.layers.0.self_attn.o_proj.weight", "model.layers.0.mlp.down_proj.weight", "lm_head.weight"):
        original = source.tensor(name).double().numpy()
        block = record.tensors[name].block_size
        numbers, steps = dequantize(*read_parts(artifact, name), original.shape[1], block)
        assert np.array_equal(model[name].numpy(), numbers * steps), "PyTorch gets the very same numbers"
        error = np.abs(numbers * steps - original) / np.abs(steps)
        slack = 1e-4 if dtype == "float32" else np.abs(numbers) * 2.0**-10
        clipped = (numbers == top) & (not record.has_positive_scales(name))
        assert (error <= np.where(clipped, 1.0, 0.5) + slack).all()
        assert error.max() > 0.4, "the rounding of a whole matrix uses its range"
    compare_weights(artifact, source)


def test_both_graphs_read_one_file(quantized: Made) -> None:
    _, artifact = quantized("int8", changes=BIASED, activations="int8")
    places = []
    for stage in ("prefill", "decode"):
        graph = onnx.load(str(artifact.graph_path(stage)), load_external_data=False).graph
        places.append({t.name: tuple((e.key, e.value) for e in t.external_data) for t in graph.initializer})
        places[-1] = {name: place for name, place in places[-1].items() if place}
    assert places[0] == places[1]
    table = "model.embed_tokens.weight"
    offsets = {name: dict(place)["offset"] for name, place in places[0].items()}
    assert offsets[table + ".packed"] == offsets[table + ".packed_rows"], "embedding and head are stored once"
    kinds = {
        node.op_type for node in onnx.load(str(artifact.graph_path("decode")), load_external_data=False).graph.node
    }
    assert {"MatMulNBits", "GatherBlockQuantized"} <= kinds and not {"Gemm", "MatMul"} & kinds


def test_kept_weights_stay_as_they_are(quantized: Made) -> None:
    checkpoint, artifact = quantized("int4", keep_float=("layers.*.k_proj", "lm_head"))
    record = artifact.manifest.quantization
    kept = {"model.embed_tokens.weight", "lm_head.weight", "model.layers.0.self_attn.k_proj.weight"}
    assert set(record.kept) == kept and not kept & record.tensors.keys()
    model, source = load_artifact_model(artifact).state_dict(), Checkpoint(checkpoint)
    assert all((model[name] == source.tensor(name)).all() for name in kept)


@pytest.mark.parametrize(
    ("options", "dtype", "message"),
    [
        (QuantizeOptions("int3"), "float32", "must be one of int8, int4"),
        (QuantizeOptions("int4", "gguf"), "float32", "must be one of auto, matmulnbits, qdq"),
        (QuantizeOptions("int4", block_size=48), "float32", "--block-size must be one of 16, 32"),
        (QuantizeOptions("int4"), "bfloat16", "no bfloat16 kernel"),
        (QuantizeOptions("int4", "qdq", embeddings=True), "float32", "the whole embedding would be dequantized"),
        (QuantizeOptions("int4", keep_float=("k_proj",)), "float32", "matches no weight.*self_attn.q_proj"),
        (QuantizeOptions("int4", keep_float=("embed_tokens",)), "float32", "matches no weight"),
        (QuantizeOptions("int4", keep_float=("*",)), "float32", "nothing to quantize"),
        (QuantizeOptions("int4", activations="int4"), "float32", "--activations"),
    ],
)
def test_bad_options_are_refused(options: Any, dtype: str, message: str, make_checkpoint: Any, tmp_path: Path) -> None:
    with pytest.raises(LucidError, match=message):
        export(make_checkpoint(), tmp_path / "artifact", ExportOptions(dtype=dtype, quantize=options))
    assert not (tmp_path / "artifact").exists()


def test_options_without_quantize_are_refused(make_checkpoint: Any, tmp_path: Path) -> None:
    arguments = [str(make_checkpoint()), "-o", str(tmp_path / "a"), "--keep-float", "lm_head"]
    result = CliRunner().invoke(export_command, arguments)
    assert isinstance(result.exception, LucidError) and "Add --quantize" in str(result.exception)


def test_rows_that_no_block_divides_are_refused_in_qdq() -> None:
    shapes = {"model.layers.0.mlp.down_proj.weight": (64, 100)}
    with pytest.raises(LucidError, match=r"down_proj has rows of 100 .*--keep-float"):
        plan_quantization(shapes, False, QuantizeOptions("int8", "qdq"))
    record = plan_quantization(shapes, False, QuantizeOptions("int8"))
    assert record.part_shape("model.layers.0.mlp.down_proj.weight", ".packed") == (64, 4, 32)


def test_small_weights_that_count_most_have_8_bits() -> None:
    parts = {"self_attn.q_proj": (96, 96), "self_attn.k_proj": (24, 96), "self_attn.v_proj": (24, 96)}
    parts |= {"self_attn.o_proj": (96, 96), "mlp.up_proj": (256, 96), "mlp.down_proj": (96, 256)}
    shapes = {f"model.layers.{layer}.{part}.weight": shape for layer in range(8) for part, shape in parts.items()}
    shapes = {"model.embed_tokens.weight": (97, 96), **shapes}
    tensors = plan_quantization(shapes, True, QuantizeOptions("int4")).tensors
    wide = {name.removeprefix("model.").removesuffix(".weight") for name, each in tensors.items() if each.bits == 8}
    small = {f"layers.{layer}.self_attn.{part}_proj" for layer in range(8) for part in "kv"}
    assert wide == {"embed_tokens", "layers.7.mlp.down_proj", *small}
    sizes = {each.block_size for each in tensors.values() if each.bits == 8}
    assert sizes == {32, 128} and not any(each.offsets for each in tensors.values() if each.bits == 8)
    several = shapes | {name: (96, 96) for name in shapes if "k_proj" in name or "v_proj" in name}
    chosen = plan_quantization(several, True, QuantizeOptions("int4")).tensors
    assert not any(each.bits for name, each in chosen.items() if ".self_attn." in name)
    named = plan_quantization(shapes, True, QuantizeOptions("int4", method="hqq")).tensors
    assert not any(each.bits for each in named.values()), "a method that is named is taken as it is"


def test_only_frequent_tokens_of_a_large_tied_head_have_8_bits() -> None:
    shapes = {"model.embed_tokens.weight": (40000, 64), "model.layers.0.mlp.up_proj.weight": (96, 64)}
    record = plan_quantization(shapes, True, QuantizeOptions("int4"))
    first, second = record.pieces("model.embed_tokens.weight")
    assert (record.bits_of(first), record.bits_of(second)) == (8, 4) and record.kept == ()
    assert [record.tensors[name].shape[0] for name in (first, second)] == [16384, 40000 - 16384]
    assert record.block_sizes(tied=True)["lm_head.weight"] == 32, "inputs are rounded alike for both"
    whole = plan_quantization(shapes, True, QuantizeOptions("int4", head_bits=8))
    assert whole.pieces("model.embed_tokens.weight") == ["model.embed_tokens.weight"]
    with pytest.raises(LucidError, match="frequent_rows needs an embedding that is quantized"):
        plan_quantization({"a.weight": (32, 32)}, False, QuantizeOptions("int4", frequent_rows=9))


def test_a_record_that_does_not_fit_the_graphs_is_found(quantized: Made, tmp_path: Path) -> None:
    import shutil

    directory = Path(shutil.copytree(quantized("int4", "qdq")[1].directory, tmp_path / "copy"))
    manifest = json.loads((directory / "lucid.json").read_text())
    manifest["quantization"]["tensors"].pop("lm_head.weight")
    (directory / "lucid.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckFailed, match=r"other quantized weights .*lm_head"):
        open_artifact(directory)
    manifest["quantization"]["bits"] = 3
    (directory / "lucid.json").write_text(json.dumps(manifest))
    with pytest.raises(LucidError, match="damaged"):
        open_artifact(directory)


def test_plans_for_fp8_and_nvfp4() -> None:
    shapes = {"model.embed_tokens.weight": (97, 48), "a.weight": (24, 48), "lm_head.weight": (97, 48)}
    plan = plan_quantization(shapes, False, QuantizeOptions("fp8"))
    assert (plan.format, plan.activations, plan.sharing) == ("qdq", "float", "one scale a weight")
    assert list(plan.tensors) == ["a.weight", "lm_head.weight"]
    plan = plan_quantization(shapes, False, QuantizeOptions("nvfp4", keep_float=("lm_head",)))
    assert plan.sharing == "blocks of 16" and plan.bits_per_weight("float16") == 4.5 + 32 / (24 * 48)
    with pytest.raises(LucidError, match=r"a has rows of 40 elements; nvfp4 needs a multiple of 16"):
        plan_quantization({"a.weight": (24, 40)}, False, QuantizeOptions("nvfp4"))
