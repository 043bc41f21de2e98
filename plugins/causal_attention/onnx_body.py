"""Causal attention in standard ONNX operators, so that every runtime can run an exported file.

Compiled from the Python below to an ONNX function (never run as Python). It computes in float32 whatever the model's
type, and holds no tensor with two token axes.

``B`` batch, ``N`` new tokens, ``P`` past tokens, ``T`` all of them.
"""
# mypy: ignore-errors

from __future__ import annotations

from onnxscript import opset23 as op
from onnxscript import script, values

from lucid_deploy.plugins.table import DOMAIN, VERSION

_LUCID = values.Opset(DOMAIN, VERSION)


@script(_LUCID, default_opset=op)
def CausalAttention(Q, K, Y, mask):
    """Blocks of query rows, each against the keys up to its own last row: no mask or score with two token axes."""
    zero = op.Constant(value_ints=[0])
    n = op.Shape(Q, start=2, end=3)
    total = op.Shape(K, start=2, end=3)
    # 256 rows up to 8192 tokens, fewer beyond, down to 64: scores of a block stay below 2²¹ a head, then 64 a token.
    rows = op.Max(op.Min(2097152 / total, op.Constant(value_ints=[256])), op.Constant(value_ints=[64]))
    past = total - n
    index = op.Range(0, op.Squeeze(total), 1)
    token = op.Unsqueeze(mask, [1, 2])  # (B, 1, 1, T)
    queries = op.Cast(Q, to=1)  # in half precision, Attention would round its scores and its softmax
    keys = op.Cast(K, to=1)
    values = op.Cast(Y, to=1)
    attended = op.Slice(queries, zero, zero, [2])
    for i_block in range(op.Squeeze((n + rows - 1) / rows)):
        start = op.Unsqueeze(i_block, [0]) * rows
        end = op.Min(start + rows, n)
        column = op.Slice(index, zero, past + end, [0])
        row = op.Unsqueeze(op.Slice(index, past + start, past + end, [0]), [1])
        earlier = op.And(op.Greater(row, column), op.Slice(token, zero, past + end, [3]))
        visible = op.Or(earlier, op.Equal(row, column))  # (B, 1, rows, P+end)
        k_seen = op.Slice(keys, zero, past + end, [2])
        y_seen = op.Slice(values, zero, past + end, [2])
        o_i = op.Attention(op.Slice(queries, start, end, [2]), k_seen, y_seen, visible)
        attended = op.Concat(attended, o_i, axis=2)
    O = op.CastLike(attended, Q)  # noqa: E741
    return O
