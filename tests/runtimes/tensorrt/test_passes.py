"""Graph passes change what TensorRT cannot build, and nothing that the graph computes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.plugins.hosts.tensorrt.registry import register_plugins
from lucid_deploy.runtimes.tensorrt.callbacks import Kept, make_logger
from lucid_deploy.runtimes.tensorrt.passes import fix_axis, plugin_domain, standard_attention, strip_bodies
from lucid_deploy.runtimes.tensorrt.prepare import check_head_width, prepare_graph

Exported = Callable[..., tuple[Path, Artifact]]
LLAMA: dict[str, Any] = {"attention_type": "llama", "logits": "all", "use_rope": False}


def load(artifact: Artifact, stage: str) -> ir.Model:
    return ir.serde.deserialize_model(onnx.load(str(artifact.graph_path(stage)), load_external_data=False))


def open_model(model: ir.Model, artifact: Artifact, tmp_path: Path) -> ort.InferenceSession:
    path = tmp_path / "changed.onnx"
    shutil.copyfile(artifact.path("weights.bin"), tmp_path / "weights.bin")
    onnx.save(ir.serde.serialize_model(model), str(path))
    onnx.checker.check_model(str(path), full_check=True)
    return ort.InferenceSession(str(path))


def inputs(artifact: Artifact, stage: str, past: int, new: int) -> dict[str, np.ndarray]:
    rng, mask = np.random.default_rng(0), np.ones((2, past + new), np.int64)
    mask[0, :2] = 0
    mask[1, past : past + new - 1 : 2] = 0  # padding among the new tokens too
    feed = {
        "input_ids": rng.integers(0, 97, (2, new)),
        "attention_mask": mask,
        "position_ids": np.maximum(mask.cumsum(1) - 1, 0)[:, past:],
    }
    for info in artifact.manifest.graphs[stage].inputs:
        if len(info.shape) != 4:
            continue
        feed[info.name] = rng.standard_normal((2, info.shape[1], past, info.shape[3])).astype(np.float32)
    return feed


@pytest.mark.parametrize("changes", [{}, LLAMA], ids=str)
@pytest.mark.parametrize(("past", "new"), [(0, 1), (0, 5), (7, 3), (300, 290)])
def test_standard_attention_computes_the_same(
    changes: dict[str, Any], past: int, new: int, exported: Exported, tmp_path: Path
) -> None:
    """Past lengths of zero and more, more rows than a block of the operator's own body, padding before and between."""
    artifact = exported(**changes)[1]
    model = load(artifact, "prefill")
    assert standard_attention(model) and not standard_attention(model)
    operators = [node.op_type for node in model.graph.all_nodes()]
    assert "CausalAttention" not in operators and operators.count("Attention") == 2
    assert operators.count("Range") <= 4, "the mask is made once for all layers; picking the last token takes two"
    feed = inputs(artifact, "prefill", past, new)
    expected = ort.InferenceSession(str(artifact.graph_path("prefill"))).run(None, feed)
    for got, wanted in zip(open_model(model, artifact, tmp_path).run(None, feed), expected, strict=True):
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5)


def test_standard_attention_in_decode_of_a_standard_model(exported: Exported, tmp_path: Path) -> None:
    artifact = exported(**LLAMA)[1]
    model = load(artifact, "decode")
    standard_attention(model)
    assert [node.op_type for node in model.graph.all_nodes() if node.domain] == []
    feed = inputs(artifact, "decode", 9, 1)
    expected = ort.InferenceSession(str(artifact.graph_path("decode"))).run(None, feed)
    for got, wanted in zip(open_model(model, artifact, tmp_path).run(None, feed), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5)


def test_strip_bodies_takes_the_plugins_and_no_other(exported: Exported) -> None:
    model = load(exported()[1], "prefill")
    nodes = [node.op_type for node in model.graph]
    assert strip_bodies(model) and not strip_bodies(model)
    assert [key[1] for key in model.functions] == ["CausalAttention"]
    assert [node.op_type for node in model.graph] == nodes


def test_fix_axis_fixes_inputs_and_outputs(exported: Exported, tmp_path: Path) -> None:
    artifact = exported(cache="static")[1]
    model = load(artifact, "decode")
    assert fix_axis(model, "max_context", 64) and not fix_axis(model, "max_context", 64)
    shapes = {value.name: list(value.shape or ()) for value in [*model.graph.inputs, *model.graph.outputs]}
    assert shapes["past_key_values.0.key"][1:] == shapes["present.1.value"][1:] == [2, 64, 36]
    session = open_model(model, artifact, tmp_path)
    feed = inputs(artifact, "decode", 63, 1)
    buffers = {name: np.pad(array, [(0, 0), (0, 0), (0, 1), (0, 0)]) for name, array in feed.items() if array.ndim == 4}
    feed = {**feed, **buffers, "cache_length": np.array([63, 40])}
    expected = ort.InferenceSession(str(artifact.graph_path("decode"))).run(None, feed)
    for got, wanted in zip(session.run(None, feed), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


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
    from dataclasses import replace

    artifact = exported()[1]
    config = replace(artifact.config, head_dim=width)
    changed = Artifact(artifact.directory, replace(artifact.manifest, config=config))
    with pytest.raises(LucidError, match=f"head_dim is {width}; the TensorRT plugin takes multiples of 4"):
        check_head_width(changed)


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
        logger = make_logger(trt, Kept())
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


def test_plugin_domain_needs_types(exported: Exported) -> None:
    model = load(exported()[1], "decode")
    [node, *_] = [node for node in model.graph if node.domain]
    node.outputs[1].type = None
    with pytest.raises(ValueError, match=f"{node.name}: {node.outputs[1].name} has no type"):
        plugin_domain(model)


def test_plugin_domain_leaves_a_standard_model_alone(exported: Exported) -> None:
    model = load(exported(**LLAMA)[1], "decode")
    standard_attention(model)
    assert not plugin_domain(model) and "trt.plugins" not in model.graph.opset_imports
