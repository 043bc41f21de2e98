"""Weights are stored in the layout that ``MatMul`` reads, and the graph computes the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper

from lucid_deploy.export.passes.store_transposed import store_transposed
from tests.export.passes.graphs import FLOAT, INT64, model, operators, run, weight_of

RNG = np.random.default_rng(0)
X, W = RNG.standard_normal((2, 3, 4)).astype(np.float32), RNG.standard_normal((5, 4)).astype(np.float32)
INPUTS = {"x": (FLOAT, ["batch", "sequence", 4]), "w": (FLOAT, [5, 4])}
TRANSPOSED = [
    helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
    helper.make_node("MatMul", ["x", "t"], ["y"]),
]


def made(*more: object, **outputs: object) -> ir.Model:
    found = model([*TRANSPOSED, *more], dict(INPUTS), {"y": (FLOAT, None), **outputs})  # type: ignore[arg-type]
    weight_of(found.graph, "w")
    return found


def test_a_weight_that_is_only_read_transposed_is_stored_transposed() -> None:
    found = made()
    assert store_transposed(found, {"w"}) == {"w"}
    assert operators(found) == ["MatMul"]
    np.testing.assert_allclose(run(found, {"x": X}, {"w": W.T.copy()})[0], X @ W.T, rtol=1e-5)


def test_a_weight_that_is_also_read_untransposed_keeps_its_layout() -> None:
    """A tied embedding: the head's ``MatMul`` becomes a ``Gemm`` that transposes."""
    gather = helper.make_node("Gather", ["w", "ids"], ["e"])
    found = model([*TRANSPOSED, gather], {**INPUTS, "ids": (INT64, [2])}, {"y": (FLOAT, None), "e": (FLOAT, None)})
    weight_of(found.graph, "w")
    assert store_transposed(found, {"w"}) == set()
    assert "Transpose" not in operators(found) and operators(found).count("Gemm") == 1
    y, e = run(found, {"x": X, "ids": np.array([4, 1])}, {"w": W})
    np.testing.assert_allclose(y, X @ W.T, rtol=1e-5)
    np.testing.assert_array_equal(e, W[[4, 1]])
    assert [value.name for value in found.graph.outputs] == ["y", "e"]


def test_a_cast_before_the_transpose_stays_with_the_transposed_shape() -> None:
    """The head of a half-precision model."""
    nodes = [
        helper.make_node("Cast", ["w"], ["c"], to=FLOAT),
        helper.make_node("Transpose", ["c"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    found = model(nodes, {**INPUTS, "w": (TensorProto.FLOAT16, [5, 4])}, {"y": (FLOAT, None)})
    weight_of(found.graph, "w")
    assert store_transposed(found, {"w"}) == {"w"}
    assert operators(found) == ["Cast", "MatMul"]
    half = W.astype(np.float16)
    np.testing.assert_allclose(run(found, {"x": X}, {"w": half.T.copy()})[0], X @ half.T.astype(np.float32), rtol=1e-5)
