"""A trace that was remembered is the trace."""

from __future__ import annotations

import inspect

import onnx_ir as ir

from lucid_deploy.export import trace as tracing
from tests.parity.small_models import small_config
from tests.remembered_traces import asked_for, packed, unpacked


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


def test_fresh_traces(fresh_traces: None) -> None:
    assert inspect.unwrap(tracing.trace) is tracing.trace
