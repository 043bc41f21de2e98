"""A trace that was remembered is the trace."""

from __future__ import annotations

import inspect

import onnx_ir as ir

from lucid_deploy.export import trace as tracing
from tests.parity.small_models import small_config
from tests.remembered_traces import packed, unpacked


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


def test_fresh_traces(fresh_traces: None) -> None:
    assert inspect.unwrap(tracing.trace) is tracing.trace
