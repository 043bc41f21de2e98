"""Shared key/value heads are moved into the batch axis, and attention gives the same outputs."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from lucid_deploy.export.passes.pair_heads import pair_heads
from tests.export.passes.graphs import FLOAT, model, operators, run

BATCH, HEADS, GROUP, NEW, TOTAL, WIDTH = 2, 3, 2, 4, 7, 8
ATTENTION = helper.make_node("Attention", ["q", "k", "v", "mask"], ["o"])


def made(heads: object = HEADS * GROUP, kv_heads: object = HEADS) -> ir.Model:
    past = (FLOAT, ["batch", kv_heads, "total", WIDTH])
    inputs = {
        "q": (FLOAT, ["batch", heads, "sequence", WIDTH]),
        **{"k": past, "v": past},
        "mask": (TensorProto.BOOL, ["batch", 1, "sequence", "total"]),
    }
    relu = helper.make_node("Relu", ["o"], ["y"])
    return model([ATTENTION, relu], inputs, {"o": (FLOAT, inputs["q"][1]), "y": (FLOAT, inputs["q"][1])})


def feed() -> dict[str, np.ndarray]:
    """Keys that correlate, and a mask that differs from row to row."""
    rng = np.random.default_rng(0)
    common = rng.standard_normal(WIDTH)
    k = (common + 0.3 * rng.standard_normal((BATCH, HEADS, TOTAL, WIDTH))).astype(np.float32)
    v = rng.standard_normal(k.shape).astype(np.float32)
    mask = np.tril(np.ones((BATCH, 1, NEW, TOTAL), bool), TOTAL - NEW)
    mask[0, :, :, :2] = False
    return {
        "q": rng.standard_normal((BATCH, HEADS * GROUP, NEW, WIDTH)).astype(np.float32),
        "k": k,
        "v": v,
        "mask": mask,
    }


def test_outputs_stay_the_same() -> None:
    before, after = made(), made()
    pair_heads(after)
    wanted = run(before, feed())
    for got, same in zip(run(after, feed()), wanted, strict=True):
        assert got.shape == (BATCH, HEADS * GROUP, NEW, WIDTH)
        np.testing.assert_allclose(got, same, rtol=1e-5, atol=1e-6)
    assert [value.name for value in after.graph.outputs] == ["o", "y"]
    proto = ir.serde.serialize_model(after)
    for got, same in zip(ReferenceEvaluator(proto).run(None, feed()), wanted, strict=True):
        np.testing.assert_allclose(got, same, rtol=1e-5, atol=1e-6)


def test_attention_sees_one_key_head_for_each_row_of_its_batch() -> None:
    found = made()
    pair_heads(found)
    proto = ir.serde.serialize_model(found)
    [node] = [node for node in proto.graph.node if node.op_type == "Attention"]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.input)
    q, k, v, mask = ReferenceEvaluator(proto).run(list(node.input), feed())
    assert q.shape == (BATCH * HEADS, GROUP, NEW, WIDTH)
    assert k.shape == v.shape == (BATCH * HEADS, 1, TOTAL, WIDTH) and mask.shape == (BATCH * HEADS, 1, NEW, TOTAL)
    np.testing.assert_array_equal(k.reshape(feed()["k"].shape), feed()["k"])


def test_heads_that_are_not_shared_are_not_touched() -> None:
    found = made(HEADS, HEADS)
    before = ir.serde.serialize_model(found).SerializeToString()
    pair_heads(found)
    assert ir.serde.serialize_model(found).SerializeToString() == before
    assert operators(found) == ["Attention", "Relu"]


def test_numbers_of_heads_must_be_known() -> None:
    with pytest.raises(ValueError, match="Attention with unknown numbers of heads"):
        pair_heads(made(heads="heads"))
    found = made()
    found.graph.inputs[1].shape = None
    with pytest.raises(ValueError, match="Attention without shapes"):
        pair_heads(found)
