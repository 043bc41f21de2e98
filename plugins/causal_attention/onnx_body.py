"""Causal attention in standard ONNX operators, so that every runtime can run an exported file.

onnxscript compiles the Python below to an ONNX function; it never runs as Python. It computes in float32 for models of
every type. Its masks and scores have at most 256 rows, however many tokens are new.

``B`` batch, ``H`` key/value heads, ``G`` query heads per key/value head, ``N`` new tokens, ``P`` past tokens,
``T = P + N``.
"""
# mypy: ignore-errors

from __future__ import annotations

from onnxscript import opset23 as op
from onnxscript import script, values

from lucid_deploy.plugins.table import DOMAIN, VERSION

_LUCID = values.Opset(DOMAIN, VERSION)


@script(_LUCID, default_opset=op)
def CausalAttention(Q, K, Y, mask):
    """Attend in blocks of query rows, each to the keys up to its last row, so that masks and scores stay small.

    Batch rows and key/value heads are merged into the batch axis of ``Attention``, which then has one key/value head.
    Given several key/value heads, some runtimes pair the wrong query heads with them, and some reject the graph.
    """
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    rest = op.Constant(value_ints=[-1])
    batch = op.Shape(K, start=0, end=1)
    heads = op.Shape(K, start=1, end=2)
    n = op.Shape(Q, start=2, end=3)
    total = op.Shape(K, start=2, end=3)
    # 256 rows up to 8192 tokens, fewer beyond, but at least 64: at most 2²¹ scores per block and head up to 2¹⁵ tokens.
    rows = op.Max(op.Min(2097152 / total, op.Constant(value_ints=[256])), op.Constant(value_ints=[64]))
    past = total - n
    index = op.Range(0, op.Squeeze(total), 1)
    token = op.Unsqueeze(mask, [1, 2])  # (B, 1, 1, T)
    width = op.Shape(Q, start=3, end=4)
    shared = op.Concat(batch * heads, one, total, width, axis=0)
    keys = op.Reshape(op.Cast(K, to=1), shared)  # (B·H, 1, T, D); float32, as Attention rounds scores to its type
    values = op.Reshape(op.Cast(Y, to=1), shared)
    queries = op.Reshape(op.Cast(Q, to=1), op.Concat(batch * heads, rest, n, width, axis=0))  # (B·H, G, N, D)
    masks = op.Where(batch > 1, heads, one)  # with one batch row, its mask is broadcast over the heads
    attended = op.Slice(queries, zero, zero, [2])
    for i_block in range(op.Squeeze((n + rows - 1) / rows)):
        start = op.Unsqueeze(i_block, [0]) * rows
        end = op.Min(start + rows, n)
        column = op.Slice(index, zero, past + end, [0])
        row = op.Unsqueeze(op.Slice(index, past + start, past + end, [0]), [1])
        earlier = op.And(op.Greater(row, column), op.Slice(token, zero, past + end, [3]))
        seen = op.Or(earlier, op.Equal(row, column))  # (B, 1, rows, P+end)
        tile = op.Concat(end - start, past + end, axis=0)
        of_heads = op.Expand(seen, op.Concat(batch, masks, tile, axis=0))
        visible = op.Reshape(of_heads, op.Concat(rest, one, tile, axis=0))  # (B·H or 1, 1, rows, P+end)
        k_seen = op.Slice(keys, zero, past + end, [2])
        y_seen = op.Slice(values, zero, past + end, [2])
        o_i = op.Attention(op.Slice(queries, start, end, [2]), k_seen, y_seen, visible)
        attended = op.Concat(attended, o_i, axis=2)
    O = op.CastLike(op.Reshape(attended, op.Shape(Q)), Q)  # noqa: E741
    return O
