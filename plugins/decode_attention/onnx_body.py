"""Decode attention of one new token in standard ONNX operators, so that every runtime can run an exported file.

onnxscript compiles the Python below to an ONNX function; it never runs as Python. It computes in float32 for models of
every type.

``B`` batch, ``H`` key/value heads, ``G`` query heads per key/value head, ``P`` past tokens, ``D`` width.
"""
# mypy: ignore-errors

from __future__ import annotations

from onnxscript import opset23 as op
from onnxscript import script, values

from lucid_deploy.plugins.table import DOMAIN, VERSION

_LUCID = values.Opset(DOMAIN, VERSION)


@script(_LUCID, default_opset=op)
def DecodeAttention(Q, K_new, V_new, K, Y, mask, epsilon: float):
    """Attend with the new key as an extra query row, so that K and Y are each used by one product.

    K is the left factor of its product: a matrix product first copies its right factor into blocks, which for all of K
    takes longer than the product with a few rows. The mask's slices depend on nothing else, so that a runtime can
    compute them once for all layers.
    """
    rest = op.Constant(value_ints=[-1])
    batch_heads = op.Shape(K_new, start=0, end=2)
    width = op.Shape(K_new, start=3, end=4)
    d = op.Cast(width, to=1)
    root_d = op.Sqrt(d)
    k_new = op.Cast(K_new, to=1)
    keys = op.Cast(K, to=1)
    values = op.Cast(Y, to=1)
    q = op.Reshape(op.Cast(Q, to=1), op.Concat(batch_heads, rest, width, axis=0)) / root_d  # (B, H, G, D)
    new_row = op.RMSNormalization(k_new, op.Expand(1.0, width), axis=-1, epsilon=epsilon)  # (B, H, 1, D)
    scores = op.MatMul(keys, op.Transpose(op.Concat(q, new_row, axis=2), perm=[0, 1, 3, 2]))  # (B, H, P, G+1)
    by_rows = op.Transpose(scores, perm=[0, 1, 3, 2])
    s_query = op.Slice(by_rows, [0], [-1], [2])  # (B, H, G, P)
    s_new = op.Slice(by_rows, [-1], [9223372036854775807], [2])  # (B, H, 1, P)

    token = op.Unsqueeze(op.Cast(mask, to=1), [1, 2])  # (B, 1, 1, P+1)
    token_past = op.Slice(token, [0], [-1], [3])
    token_new = op.Slice(token, [-1], [9223372036854775807], [3])
    hidden = (token_past - 1.0) * 3.0e38  # 0 where there is a token, close to −∞ at padding
    hidden_to_new = (token_past * token_new - 1.0) * 3.0e38
    s_self = op.MatMul(q, op.Transpose(k_new, perm=[0, 1, 3, 2]))  # (B, H, G, 1)
    p = op.Softmax(op.Concat(s_query + hidden, s_self, axis=3), axis=-1)  # (B, H, G, P+1); a token always sees itself
    p_past = op.Slice(p, [0], [-1], [3])
    p_self = op.Slice(p, [-1], [9223372036854775807], [3])
    squares = op.Transpose(
        op.ReduceSumSquare(keys, [3], keepdims=1), perm=[0, 1, 3, 2]
    )  # (B, H, 1, P): d · mean square
    # root_d is not part of hidden_to_new: OpenVINO would add it to 3e38, where it is lost.
    weights = op.Exp(s_new / op.Sqrt(squares + d * epsilon) - root_d + hidden_to_new)  # (B, H, 1, P)
    joined = op.Concat(p_past, weights, axis=2)  # (B, H, G+1, P)
    sums = op.MatMul(joined, values)  # (B, H, G+1, D)
    y_new = op.Cast(V_new, to=1) - op.Slice(sums, [-1], [9223372036854775807], [2])
    attended = op.Slice(sums, [0], [-1], [2]) + p_self * y_new  # (B, H, G, D)
    O = op.CastLike(op.Reshape(attended, op.Shape(Q)), Q)  # noqa: E741
    Y_new = op.CastLike(y_new, V_new)
    return O, Y_new
