"""A trace that was remembered is the trace."""

from __future__ import annotations

import dataclasses
import inspect

import onnx
import onnx_ir as ir
import pytest

from lucid_deploy.export import trace as tracing
from tests.parity.small_models import small_config
from tests.remembered_traces import NOT_IN_GRAPHS, asked_for, packed, unpacked


def test_nothing_is_lost() -> None:
    traced = tracing.trace(small_config(num_hidden_layers=1), "decode", "float16", "all", cache="static")
    again = unpacked(packed(traced))
    assert (again.inputs, again.outputs, again.transposed) == (traced.inputs, traced.outputs, traced.transposed)
    assert list(again.model.graph.initializers) == list(traced.model.graph.initializers)
    for name, value in traced.model.graph.initializers.items():
        found = again.model.graph.initializers[name]
        assert (found.shape, found.dtype, found.const_value is None) == (
            value.shape,
            value.dtype,
            value.const_value is None,
        )
    assert ir.serde.serialize_model(again.model) == ir.serde.serialize_model(traced.model)


def test_traces_are_remembered_and_can_be_made_afresh() -> None:
    assert inspect.unwrap(tracing.trace) is not tracing.trace
    first, second = (tracing.trace(small_config(num_hidden_layers=1), "decode", "float32") for _ in range(2))
    assert first.model is not second.model
    assert ir.serde.serialize_model(first.model) == ir.serde.serialize_model(second.model)


def test_prefill_is_the_same_for_either_cache(fresh_traces: None) -> None:
    """So that one is traced for both."""
    config = small_config(num_hidden_layers=1)
    growing = tracing.trace(config, "prefill", "float32")
    static = tracing.trace(config, "prefill", "float32", cache="static", opset=23)
    assert (growing.inputs, growing.outputs, growing.transposed) == (static.inputs, static.outputs, static.transposed)
    assert ir.serde.serialize_model(growing.model) == ir.serde.serialize_model(static.model)
    assert asked_for(config, "prefill", "float32") == asked_for(config, "prefill", dtype="float32", cache="static")
    assert asked_for(config, "decode", "float32") != asked_for(config, "decode", "float32", cache="static")


@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_what_no_graph_says_is_not_asked_for(stage: str, fresh_traces: None) -> None:
    """Lengths, ends, and where the head of a float32 model is computed: one trace is for all."""
    config = small_config(num_hidden_layers=1)
    limits = {"max_position_embeddings": 9, "bos_token_id": 2, "eos_token_ids": (5, 6)}
    assert limits.keys() == NOT_IN_GRAPHS.keys()
    other = dataclasses.replace(config, **limits)
    assert asked_for(config, stage, "float32") == asked_for(other, stage, "float32", float32_head=False)
    first = tracing.trace(config, stage, "float32")
    second = tracing.trace(other, stage, "float32", float32_head=False)
    assert (first.inputs, first.outputs, first.transposed) == (second.inputs, second.outputs, second.transposed)
    assert without_notes(first.model) == without_notes(second.model)


def without_notes(model: ir.Model) -> onnx.ModelProto:
    """Without the tracer's notes, which no artifact keeps."""
    proto = ir.serde.serialize_model(model)
    for item in (proto, proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.output):
        del item.metadata_props[:]
    return proto


def test_what_graphs_say_is_asked_for() -> None:
    config = small_config(num_hidden_layers=1)
    plain = asked_for(config, "decode", "float16")
    for options in ({"cache_dtype": "int8"}, {"float32_head": False}, {"logits": "all"}, {"opset": 24}):
        assert asked_for(config, "decode", "float16", **options) != plain
    assert asked_for(dataclasses.replace(config, rms_norm_eps=1e-3), "decode", "float16") != plain


def test_fresh_traces(fresh_traces: None) -> None:
    assert inspect.unwrap(tracing.trace) is tracing.trace
