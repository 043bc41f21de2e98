"""Decode attention in standard ONNX operators, so that every runtime can run an exported file.

Compiled from the Python below to an ONNX function (never run as Python). It computes in float32 whatever the model's
type.

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
    """The new key rides along as one more query row, so K and Y each meet one product."""
    rest = op.Constant(value_ints=[-1])
    batch_heads = op.Shape(K, start=0, end=2)
    past = op.Shape(K, start=2, end=3)
    width = op.Shape(K, start=3, end=4)
    end = past + 1
    root_d = op.Sqrt(op.Cast(width, to=1))
    inverse_root = op.Reciprocal(root_d)
    k_new = op.Cast(K_new, to=1)
    keys = op.Cast(K, to=1)
    values = op.Cast(Y, to=1)
    q = op.Reshape(op.Cast(Q, to=1), op.Concat(batch_heads, rest, width, axis=0)) * inverse_root  # (B, H, G, D)
    new_row = op.RMSNormalization(k_new, op.Expand(inverse_root, width), axis=-1, epsilon=epsilon)  # (B, H, 1, D)
    scores = op.MatMul(op.Concat(q, new_row, axis=2), op.Transpose(keys, perm=[0, 1, 3, 2]))  # (B, H, G+1, P)
    s_query = op.Slice(scores, [0], [-1], [2])
    s_new = op.Slice(scores, [-1], [9223372036854775807], [2])
    mean_square = op.Transpose(op.ReduceSumSquare(keys, [3], keepdims=1), perm=[0, 1, 3, 2]) / op.Cast(width, to=1)
    key_norm = op.Reciprocal(op.Sqrt(mean_square + epsilon))  # (B, H, 1, P)

    token = op.Unsqueeze(op.Cast(mask, to=1), [1, 2])  # (B, 1, 1, P+1)
    token_past = op.Slice(token, [0], past, [3])
    token_new = op.Slice(token, past, end, [3])
    weights = op.Exp(s_new * key_norm - root_d) * (token_past * token_new)  # (B, H, 1, P)
    hidden = (token_past - 1.0) * 3.0e38  # 0 where there is a token, close to −∞ at padding
    s_self = op.MatMul(q, op.Transpose(k_new, perm=[0, 1, 3, 2]))  # (B, H, G, 1)
    peak = op.ReduceMax(op.Concat(s_query + hidden, s_self, axis=3), [3])
    p = op.Exp(s_query + hidden - peak)  # (B, H, G, P)
    p_self = op.Exp(s_self - peak)
    sums = op.MatMul(op.Concat(p, weights, axis=2), values)  # (B, H, G+1, D)
    y_new = op.Cast(V_new, to=1) - op.Slice(sums, [-1], [9223372036854775807], [2])
    total = op.ReduceSum(p, [3]) + p_self
    attended = (op.Slice(sums, [0], [-1], [2]) + p_self * y_new) / total  # (B, H, G, D)
    O = op.CastLike(op.Reshape(attended, op.Shape(Q)), Q)  # noqa: E741
    Y_new = op.CastLike(y_new, V_new)
    return O, Y_new
