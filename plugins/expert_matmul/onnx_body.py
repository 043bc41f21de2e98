"""The products of a mixture of experts in standard ONNX operators, so that every runtime can run them.

onnxscript compiles the Python below to ONNX functions; it never runs as Python.

R: rows, E: experts, K: depth, N: columns, B: blocks, r: rows of one expert.
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
    """Sort the rows by expert, multiply each expert's rows by its matrix, and restore their order."""
    zero = op.Constant(value_ints=[0])
    rows = op.Shape(expert)
    chosen, _first, _inverse, counts = op.Unique(expert, axis=0, sorted=1)
    ends = op.CumSum(counts, op.Constant(value_int=0))
    row = op.Range(0, op.Squeeze(rows), 1)
    _keys, order = op.TopK(expert * rows + row, rows, largest=0)  # a stable sort by expert
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


@script(_LUCID, default_opset=op)
def QuantizedExpertMatMul(X, expert, W, scales):
    """Compute ``ExpertMatMul``, dequantizing the matrix of each expert that has rows just before its product."""
    zero = op.Constant(value_ints=[0])
    rows = op.Shape(expert)
    chosen, _first, _inverse, counts = op.Unique(expert, axis=0, sorted=1)
    ends = op.CumSum(counts, op.Constant(value_int=0))
    row = op.Range(0, op.Squeeze(rows), 1)
    _keys, order = op.TopK(expert * rows + row, rows, largest=0)
    sorted_rows = op.Gather(X, order)
    columns = op.Shape(W, start=1, end=2)
    none = op.Expand(0.0, op.Concat(zero, columns, axis=0))  # (0, N)
    depth = op.Shape(X, start=1, end=2)
    blocks, size = op.Shape(W, start=2, end=3), op.Shape(W, start=3, end=4)
    in_byte = op.Div(depth, op.Mul(blocks, size))  # quantized values in a byte: 2 of 4 bits, or 1 of 8
    has_two = op.Equal(in_byte, op.Constant(value_ints=[2]))
    low_bits = op.Cast(op.Where(has_two, op.Constant(value_ints=[15]), op.Constant(value_ints=[255])), to=2)
    low_half = op.Cast(op.Where(has_two, op.Constant(value_ints=[8]), op.Constant(value_ints=[128])), to=2)
    high_bits, high_half = op.Cast(op.Constant(value_ints=[240]), to=2), op.Cast(op.Constant(value_ints=[128]), to=2)
    last = op.Constant(value_ints=[-1])
    by_block = op.Concat(last, size, axis=0)
    each = op.Mul(columns, blocks)  # (N·B)
    low_zeros, high_zeros = op.Expand(low_half, each), op.Expand(high_half, each)
    matrix_shape = op.Concat(columns, depth, axis=0)

    @graph()
    def step(i: INT64, goes_on: BOOL, products: FLOAT[...]):
        end = op.Unsqueeze(op.Gather(ends, i), zero)
        start = end - op.Unsqueeze(op.Gather(counts, i), zero)
        own = op.Slice(sorted_rows, start, end, zero)  # (r, K)
        one = op.Gather(chosen, i)
        packed = op.Reshape(op.Gather(W, one, axis=0), by_block)  # (N·B, bytes)
        scale = op.Cast(op.Reshape(op.Gather(scales, one, axis=0), each), to=1)
        # High bits are not shifted; their scale is divided by 16 instead, since OpenVINO's BitShift divides and rounds.
        low = op.DequantizeLinear(op.BitwiseAnd(packed, low_bits), scale, low_zeros, axis=0)
        high = op.DequantizeLinear(op.BitwiseAnd(packed, high_bits), scale / 16.0, high_zeros, axis=0)
        both = op.Concat(op.Unsqueeze(low, last), op.Unsqueeze(high, last), axis=-1)  # (N·B, bytes, 2)
        matrix = op.Reshape(op.Slice(both, zero, in_byte, last), matrix_shape)  # (N, K)
        product = op.Gemm(op.Cast(own, to=1), matrix, transB=1)
        return op.Identity(goes_on), op.Concat(products, product, axis=0)

    joined = op.Loop(op.Squeeze(op.Shape(chosen)), op.Constant(value=TRUE), none, body=step)
    _sorted, places = op.TopK(order, rows, largest=0)
    O = op.CastLike(op.Gather(joined, places), X)  # noqa: E741
    return O
