"""The product of each row with its expert's matrix in standard ONNX operators, so that every runtime can run it.

onnxscript compiles the Python below to ONNX functions; it never runs as Python.

``R`` rows, ``E`` experts, ``K`` depth, ``N`` columns.
"""
# mypy: ignore-errors

from __future__ import annotations

import numpy as np
import onnx
from onnxscript import BOOL, FLOAT, INT64, graph, script, values
from onnxscript import opset23 as op

from lucid_deploy.plugins.table import DOMAIN, VERSION

_LUCID = values.Opset(DOMAIN, VERSION)
TRUE = onnx.numpy_helper.from_array(np.array(True))


@script(_LUCID, default_opset=op)
def ExpertMatMul(X, expert, W):
    """Sort the rows by expert, multiply those of each chosen expert by its matrix, and put them back."""
    zero = op.Constant(value_ints=[0])
    rows = op.Shape(expert)
    chosen, _first, _inverse, counts = op.Unique(expert, axis=0, sorted=1)
    ends = op.CumSum(counts, op.Constant(value_int=0))
    row = op.Range(0, op.Squeeze(rows), 1)
    _keys, order = op.TopK(expert * rows + row, rows, largest=0)  # equal experts in the order of their rows
    sorted_rows = op.Gather(X, order)
    none = op.Expand(0.0, op.Concat(zero, op.Shape(W, start=1, end=2), axis=0))  # (0, N)

    @graph()
    def step(i: INT64, goes_on: BOOL, products: FLOAT[...]):
        end = op.Unsqueeze(op.Gather(ends, i), zero)
        start = end - op.Unsqueeze(op.Gather(counts, i), zero)
        own = op.Slice(sorted_rows, start, end, zero)  # (r, K)
        matrix = op.Transpose(op.Gather(W, op.Gather(chosen, i), axis=0), perm=[1, 0])  # (K, N)
        return op.Identity(goes_on), op.Concat(products, op.Cast(op.MatMul(own, matrix), to=1), axis=0)

    joined = op.Loop(op.Squeeze(op.Shape(chosen)), op.Constant(value=TRUE), none, body=step)
    _places, back = op.TopK(order, rows, largest=0)
    O = op.CastLike(op.Gather(joined, back), X)  # noqa: E741
    return O
