"""The contract of the graphs: inputs and outputs, and what the tracer makes of the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto

from lucid_deploy.artifact import STAGES, Artifact
from lucid_deploy.cache.layout import CacheTensor
from lucid_deploy.export import ExportOptions
from lucid_deploy.export.trace import graph_inputs, graph_outputs, trace
from lucid_deploy.model.config_parsing import parse_config
from lucid_deploy.model.description import LayerDescription
from lucid_deploy.model.lucid import LucidForCausalLM
from tests.conftest import MIXED, TINY
from tests.export.float32_islands import HALF, LINEAR, nodes, products_in_half, typed

Exported = Callable[..., tuple[Path, Artifact]]


def load(artifact: Artifact, stage: str) -> onnx.ModelProto:
    return onnx.load(str(artifact.graph_path(stage)), load_external_data=False)


def shapes(values: Any) -> dict[str, list[int | str]]:
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values
    }


@pytest.mark.parametrize(("stage", "new"), [("prefill", "sequence"), ("decode", 1)])
def test_graphs_have_the_contracts_inputs_and_outputs(exported: Exported, stage: str, new: int | str) -> None:
    _, artifact = exported()
    graph = load(artifact, stage).graph
    past = ["batch", 2, "past_sequence", 36]
    present = ["batch", 2, f"past_sequence + {new}", 36]
    assert shapes(graph.input) == {
        "input_ids": ["batch", new],
        "attention_mask": ["batch", f"past_sequence + {new}"],
        "position_ids": ["batch", new],
        **{f"past_key_values.{layer}.{kind}": past for layer in range(2) for kind in ("key", "value")},
    }
    assert shapes(graph.output) == {
        "logits": ["batch", 1, 97],
        **{f"present.{layer}.{kind}": present for layer in range(2) for kind in ("key", "value")},
    }
    info = artifact.manifest.graphs[stage]
    assert {item.name: list(item.shape) for item in (*info.inputs, *info.outputs)} == {
        **shapes(graph.input),
        **shapes(graph.output),
    }


@pytest.mark.parametrize(("dtype", "tied"), [("float16", False), ("bfloat16", True)])
def test_the_head_computes_in_float32(exported, dtype: str, tied: bool) -> None:
    """Its weight is stored in the model's type, cast in the graph, and not transposed on loading."""
    _, artifact = exported(dtype, tie_word_embeddings=tied)
    for stage in STAGES:
        model = typed(artifact.graph_path(stage))
        found = list(nodes(model.graph))
        makers = {name: (node, kinds) for node, kinds in found for name in node.output}
        node, kinds = makers["logits"]
        while node.op_type == "Reshape":
            node, kinds = makers[node.input[0]]
        assert node.op_type in ("MatMul", "Gemm") and kinds == {TensorProto.FLOAT}
        cast, _ = makers[node.input[1]]
        name = "model.embed_tokens.weight" if tied else "lm_head.weight"
        weight = next(item for item in model.graph.initializer if item.name == cast.input[0])
        assert cast.op_type == "Cast" and weight.data_type in HALF and weight.name in (name, "lm_head.weight")
        assert len(products_in_half(model)) == LINEAR
        weights = {item.name for item in model.graph.initializer} | {cast.output[0]}
        assert not [node for node, _ in found if node.op_type == "Transpose" and node.input[0] in weights]


LAYERS = (
    LayerDescription("own", (CacheTensor("average", "float32", (7,), "state"),)),
    LayerDescription("window", (CacheTensor("key", "int8", (2, 8), "ring", 5),)),
    LayerDescription("lucid", (CacheTensor("key", "float16", (2, 8)), CacheTensor("key_scale", "float32", (2, 1)))),
)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("cache", ["growing", "static"])
def test_graph_inputs_and_outputs_follow_the_layers_cached_tensors(stage: str, cache: str) -> None:
    inputs, outputs = graph_inputs(LAYERS, stage, cache), graph_outputs(LAYERS, 97, stage, "all", cache)
    shapes = {item.name: (item.dtype, item.shape) for item in inputs}
    static = stage == "decode" and cache == "static"
    tokens = "max_context" if static else "past_sequence"
    assert shapes["past_key_values.0.average"] == ("float32", ("batch", 7))
    assert shapes["past_key_values.1.key"] == ("int8", ("batch", 2, "past_window_5", 8))
    assert shapes["past_key_values.2.key"] == ("float16", ("batch", 2, tokens, 8))
    assert ("cache_length" in shapes) == static
    # A present tensor has the name, the type and the fixed axes of the past one, in the same order.
    past = [item for item in inputs if item.name.startswith("past_key_values.")]
    assert [item.name for item in outputs] == ["logits", *(i.name.replace("past_key_values", "present") for i in past)]
    for before, after in zip(past, outputs[1:], strict=True):
        fixed = [[axis for axis in item.shape if isinstance(axis, int)] for item in (before, after)]
        assert before.dtype == after.dtype and fixed[0] == fixed[1] and len(before.shape) == len(after.shape)
    new = "sequence" if stage == "prefill" else 1
    assert outputs[0].shape == ("batch", new, 97)
    assert graph_outputs(LAYERS, 97, stage, "last", cache)[0].shape == ("batch", 1, 97)


def test_weights_of_linear_layers_are_stored_transposed(exported: Exported) -> None:
    """A tied embedding is read in both layouts, so it stays as it is."""
    for dtype, tied in (("float16", False), ("bfloat16", True)):
        _, artifact = exported(dtype, tie_word_embeddings=tied)
        with torch.device("meta"):
            model = LucidForCausalLM(artifact.config)
        linear = {f"{name}.weight" for name, each in model.named_modules() if isinstance(each, torch.nn.Linear)}
        assert set(artifact.manifest.transposed) == linear - ({"lm_head.weight"} if tied else set())


def test_layers_with_as_many_key_heads_as_query_heads_are_traced() -> None:
    """PyTorch's exporter fails on attention that is said to be grouped and is not: so did Llama 2 and Phi-3 mini."""
    two = {**MIXED, "num_hidden_layers": 2, "layer_types": MIXED["layer_types"][1:]}
    config = parse_config({**TINY, **two, "num_key_value_heads": TINY["num_attention_heads"]}, "test configuration")
    operators = {node.op_type for node in trace(config, "decode", ExportOptions()).model.graph}
    assert "Attention" in operators
