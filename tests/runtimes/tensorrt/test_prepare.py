"""Graphs are prepared for TensorRT; what TensorRT cannot run is refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.artifact.quantization import Quantization, QuantizedTensor
from lucid_deploy.errors import LucidError
from lucid_deploy.plugins.hosts.tensorrt.registry import register_plugins
from lucid_deploy.runtimes.tensorrt.callbacks import CallbackFailure, make_logger
from lucid_deploy.runtimes.tensorrt.prepare import check_artifact, check_float_formats, check_head_width, prepare_graph
from tests.conftest import MIXED

Exported = Callable[..., tuple[Path, Artifact]]


FLOAT8 = onnx.TensorProto.FLOAT8E4M3FN


def test_an_artifact_without_the_custom_operators_is_refused(artifact_copy: Path) -> None:
    """As left by a tool that inlines functions."""
    from onnx import inliner

    from lucid_deploy.artifact import open_artifact

    artifact = open_artifact(artifact_copy)
    for stage, wanted in (("prefill", "Precondition"), ("decode", "DecodeAttention")):
        path = artifact.graph_path(stage)
        onnx.save(inliner.inline_local_functions(onnx.load(str(path), load_external_data=False)), str(path))
        with pytest.raises(LucidError, match=rf"{stage}\.onnx has 0 nodes ai\.lucid::{wanted} where the model has 2"):
            prepare_graph(Artifact(artifact.directory, artifact.manifest), stage, 64)


@pytest.mark.parametrize("width", [12, 66, 260])
def test_a_head_width_without_kernels_is_refused(width: int, exported: Exported) -> None:
    artifact = exported()[1]
    config = replace(artifact.config, head_dim=width)
    changed = Artifact(artifact.directory, replace(artifact.manifest, config=config))
    with pytest.raises(LucidError, match=f"head_dim is {width}; the TensorRT plugin takes multiples of 4"):
        check_head_width(changed)


def test_states_are_accepted_and_rings_are_refused(exported: Exported, hybrid: Callable[..., Artifact]) -> None:
    check_artifact(hybrid())
    check_artifact(hybrid(cache="static"))
    with pytest.raises(LucidError, match=r"key of layer 2 \(window\) in .* is of the sort ring"):
        check_artifact(exported(**MIXED)[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cache_dtype": "int8"}, "Export with --cache-dtype auto"),
        (
            {"cache_dtype": "fp8"},
            "only in float16 or bfloat16 models.* is in float32 with a growing cache",
        ),
        (
            {"cache_dtype": "fp8", "dtype": "float16", "cache": "static"},
            "cannot write E4M3 in place.* is in float16 with a static cache",
        ),
        ({"inline": True}, "Export without --cache and --inline"),
    ],
)
def test_unsupported_caches_and_graphs_are_refused(changes: dict[str, Any], message: str, exported: Exported) -> None:
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
        rows.discard("Shape")
        assert rows == {"prefill": {"Concat", "DequantizeLinear"}}.get(stage, {"Concat", operator})


def test_the_copy_for_onnxruntimes_provider_leads_tensorrts_parser_to_the_plugins(
    exported: Exported, plugin: Path
) -> None:
    """Without ``plugin_namespace``, TensorRT-RTX's parser takes the node's domain for it and finds no plugin."""
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
    ("scheme", "activations", "capabilities", "message"),
    [
        ("fp8", "float", (), None),
        ("fp8", "fp8-static", (89, 90, 120), None),
        ("fp8", "float", (80, 86, 89), r"compute capability 8\.0, 8\.6 do not support fp8, .* 8\.9 and newer do"),
        ("nvfp4", "float", (120,), None),
        ("nvfp4", "float", (89, 120), r"compute capability 8\.9 do not support nvfp4"),
        ("fp8", "fp8-token", (), r"no layer for that.*--quantize stored --activations float"),
        ("fp8", "fp8-group", (89,), r"no layer for that.*--quantize stored --activations float"),
        ("int8", "float", (80,), None),
        ("int8", "float", (75,), r"7\.5 cannot run this artifact: the plugin library has no kernels"),
    ],
)
def test_number_formats_that_gpus_or_tensorrt_lack_are_refused(
    scheme: str,
    activations: str,
    capabilities: tuple[int, ...],
    message: str | None,
    exported: Callable[..., tuple[Path, Artifact]],
) -> None:
    artifact = exported()[1]
    tensors = {"lm_head.weight": QuantizedTensor((97, 64), 16)}
    group = 16 if activations == "fp8-group" else None
    bits = 4 if scheme == "nvfp4" else 8
    record = Quantization(scheme, bits, "qdq", activations, tensors, (), "a test", input_block=group)
    changed = Artifact(artifact.directory, replace(artifact.manifest, quantization=record))
    if message is None:
        check_float_formats(changed, capabilities)
        return
    with pytest.raises(LucidError, match=message):
        check_float_formats(changed, capabilities)
