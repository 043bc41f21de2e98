"""Graphs are prepared for TensorRT, or refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.artifact.quantization import Method, Quantization, QuantizedTensor
from lucid_deploy.errors import LucidError
from lucid_deploy.plugins.hosts.tensorrt.registry import register_plugins
from lucid_deploy.runtimes.tensorrt.callbacks import CallbackFailure, make_logger
from lucid_deploy.runtimes.tensorrt.prepare import check_artifact, check_head_width, kernel_head_dims, prepare_graph
from tests.conftest import MIXED

Exported = Callable[..., tuple[Path, Artifact]]
FLOAT8 = onnx.TensorProto.FLOAT8E4M3FN


def test_weights_stay_in_their_file(exported: Exported) -> None:
    artifact = exported()[1]
    graph = prepare_graph(artifact, "prefill", 64)
    assert graph.plugin_nodes == {"Precondition": 2}
    assert len(graph.model) < artifact.path("prefill.onnx").stat().st_size


def test_an_artifact_without_the_custom_operators(artifact_copy: Path) -> None:
    """As a tool leaves it that inlines functions."""
    from onnx import inliner

    from lucid_deploy.artifact import open_artifact

    artifact = open_artifact(artifact_copy)
    for stage, wanted in (("prefill", "Precondition"), ("decode", "DecodeAttention")):
        path = artifact.graph_path(stage)
        onnx.save(inliner.inline_local_functions(onnx.load(str(path), load_external_data=False)), str(path))
        with pytest.raises(LucidError, match=rf"{stage}\.onnx has 0 nodes ai\.lucid::{wanted} where the model has 2"):
            prepare_graph(Artifact(artifact.directory, artifact.manifest), stage, 64)


def test_an_operator_nobody_knows(artifact_copy: Path) -> None:
    from lucid_deploy.artifact import open_artifact

    artifact = open_artifact(artifact_copy)
    model = onnx.load(str(artifact.graph_path("prefill")), load_external_data=False)
    next(node for node in model.graph.node if node.op_type == "Precondition").op_type = "Postcondition"
    onnx.save(model, str(artifact.graph_path("prefill")))
    with pytest.raises(LucidError, match="operators that the plugin library does not have: Postcondition"):
        prepare_graph(Artifact(artifact.directory, artifact.manifest), "prefill", 64)


@pytest.mark.parametrize("width", [12, 66, 260])
def test_a_head_width_the_kernels_lack(width: int, exported: Exported) -> None:
    artifact = exported()[1]
    config = replace(artifact.config, head_dim=width)
    changed = Artifact(artifact.directory, replace(artifact.manifest, config=config))
    with pytest.raises(LucidError, match=f"head_dim is {width}; the TensorRT plugin takes multiples of 4"):
        check_head_width(changed)


@pytest.mark.parametrize(("keys", "values"), [(12, 16), (18, 16), (16, 6), (260, 16)])
def test_widths_of_the_delta_rule_that_the_kernels_lack(
    keys: int, values: int, hybrid: Callable[..., Artifact]
) -> None:
    artifact = hybrid()
    check_head_width(artifact)
    layer = artifact.manifest.layers[2]
    cache = (layer.cache[0], replace(layer.cache[1], shape=(8, keys, values)))
    layers = (*artifact.manifest.layers[:2], replace(layer, cache=cache))
    changed = Artifact(artifact.directory, replace(artifact.manifest, layers=layers))
    with pytest.raises(LucidError, match=f"layer 2 have keys of width {keys} and values of width {values}"):
        check_head_width(changed)


def test_head_widths_that_kernels_must_have(exported: Exported, hybrid: Callable[..., Artifact]) -> None:
    assert kernel_head_dims(exported()[1]) == (36,)
    assert kernel_head_dims(exported(attention_type="llama")[1]) == (), "no kernels at all"
    artifact = hybrid()
    layer = artifact.manifest.layers[2]
    wider = replace(layer, cache=(layer.cache[0], replace(layer.cache[1], shape=(8, 64, 32))))
    layers = (*artifact.manifest.layers[:2], wider, *artifact.manifest.layers[3:])
    changed = Artifact(artifact.directory, replace(artifact.manifest, layers=layers))
    assert kernel_head_dims(changed) == (artifact.config.head_dim, 64), "LUCID's heads, and keys of the delta rule"


def test_what_engines_cannot_keep_is_named(exported: Exported, hybrid: Callable[..., Artifact]) -> None:
    check_artifact(hybrid())
    check_artifact(hybrid(cache="static"))
    with pytest.raises(LucidError, match=r"Layer 2 \(window\) caches key \(ring\)"):
        check_artifact(exported(**MIXED)[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cache_dtype": "int8"}, "Export with --cache-dtype auto or fp8"),
        (
            {"cache_dtype": "fp8"},
            "keep a cache in fp8 beside float16 and bfloat16.* is in float32 with a growing cache",
        ),
        (
            {"cache_dtype": "fp8", "dtype": "float16", "cache": "static"},
            "TensorRT writes no E4M3 in place.* is in float16 with a static cache",
        ),
        ({"inline": True}, "Export without it"),
    ],
)
def test_an_artifact_of_another_kind(changes: dict[str, Any], message: str, exported: Exported) -> None:
    artifact = exported()[1]
    check_artifact(artifact)
    with pytest.raises(LucidError, match=message):
        check_artifact(Artifact(artifact.directory, replace(artifact.manifest, **changes)))


def test_decoding_and_verifying_read_a_cache_of_fp8_as_it_is_stored(exported: Exported) -> None:
    artifact = exported("float16", cache_dtype="fp8")[1]
    with pytest.raises(
        LucidError, match=r"head_dim is 36; .* multiples of 8 from 16 to 256 with a cache in fp8\. Export"
    ):
        check_artifact(artifact)
    wanted = {"prefill": "Precondition", "decode": "DecodeAttentionFloat8", "verify": "DecodeAttentionFloat8"}
    for stage, operator in wanted.items():
        graph = prepare_graph(artifact, stage, 64)
        assert graph.plugin_nodes == {operator: 2}
        model = onnx.load_model_from_string(graph.model)
        assert not [node for node in model.graph.node if node.op_type == "Cast" and node.attribute[0].i == FLOAT8]
        rows = {node.op_type for node in model.graph.node if "past_key_values.1.value" in node.input}
        assert rows == {"prefill": {"Concat", "DequantizeLinear"}}.get(stage, {"Concat", operator})


def test_the_copy_for_onnxruntimes_provider_leads_tensorrts_parser_to_the_plugins(
    exported: Exported, plugin: Path
) -> None:
    """With TensorRT-RTX's parser; without the attribute it looks for them in the domain's name and finds none."""
    trt = pytest.importorskip("tensorrt_rtx", reason='needs TensorRT-RTX: pip install -e ".[rtx]"')
    register_plugins(plugin, trt)
    artifact = exported()[1]
    for stage, count in (("prefill", 2), ("decode", 2)):
        graph = prepare_graph(artifact, stage, 64, for_onnxruntime=True)
        path = str(artifact.graph_path(stage))
        logger = make_logger(trt, CallbackFailure())
        network = trt.Builder(logger).create_network(0)
        assert trt.OnnxParser(network, logger).parse(graph.model, path), logger.errors
        layers = [network.get_layer(index).type for index in range(network.num_layers)]
        assert layers.count(trt.LayerType.PLUGIN_V3) == count
        assert graph.plugin_nodes == prepare_graph(artifact, stage, 64).plugin_nodes
    model = onnx.load_from_string(graph.model)
    for node in model.graph.node:
        kept = [each for each in node.attribute if each.name != "plugin_namespace"]
        del node.attribute[:]
        node.attribute.extend(kept)
    network = trt.Builder(logger).create_network(0)
    assert not trt.OnnxParser(network, logger).parse(model.SerializeToString(), path)


@pytest.mark.parametrize(
    ("method", "zeros", "message"),
    [
        (Method(), False, r"Export it for TensorRT with --quantize int4 --quantize-format qdq\."),
        (Method("gptq"), False, "with --quantize int4 --method gptq --quantize-format qdq"),
        (Method("auto", {"target_bits": 6.0}), False, "--method auto --target-bits 6 --quantize-format qdq"),
        (Method("stored", {"layout": "gptq"}), False, "with --quantize stored --quantize-format qdq"),
        (Method("stored", {"layout": "awq"}), True, "have zero points, .* export that with --quantize int4"),
    ],
)
def test_what_to_do_with_onnxruntime_s_numbers(method: Method, zeros: bool, message: str, exported: Exported) -> None:
    artifact = exported()[1]
    tensors = {"lm_head.weight": QuantizedTensor((97, 64), 32, zeros)}
    record = Quantization("int4", 4, "matmulnbits", "int8", tensors, (), "a test", method)
    changed = Artifact(artifact.directory, replace(artifact.manifest, quantization=record))
    with pytest.raises(LucidError, match=message):
        prepare_graph(changed, "prefill", 64)
