"""Decode attention of a few new tokens in standard ONNX operators: the step that verifies drafted tokens.

onnxscript compiles the Python below to an ONNX function; it never runs as Python. It computes in float32 for models of
every type. Graphs with one new token per step use the body of :mod:`~lucid_deploy.plugins.decode_attention.onnx_body`.

``B`` batch, ``H`` key/value heads, ``G`` query heads per key/value head, ``N`` new and ``P`` past tokens, ``D`` width.
"""
# mypy: ignore-errors

from __future__ import annotations

from onnxscript import opset23 as op
from onnxscript import script, values

from lucid_deploy.plugins.table import DOMAIN, VERSION

_LUCID = values.Opset(DOMAIN, VERSION)
LARGEST_BLOCK = 32  # largest number of new tokens: the five merges below double the blocks from 1 to 32


@script(_LUCID, default_opset=op)
def DecodeAttentionSeveral(Q, K_new, V_new, K, Y, mask, epsilon: float):
    """Attend with the new keys as extra query rows, so that K and Y are each used by one product."""
    zero = op.Constant(value_ints=[0])
    rest = op.Constant(value_ints=[-1])
    end = op.Constant(value_ints=[9223372036854775807])
    batch_heads = op.Shape(K, start=0, end=2)
    past = op.Shape(K, start=2, end=3)
    width = op.Shape(K, start=3, end=4)
    n = op.Shape(K_new, start=2, end=3)
    root_d = op.Sqrt(op.Cast(width, to=1))
    inverse_root = op.Reciprocal(root_d)
    k_new = op.Cast(K_new, to=1)
    keys = op.Cast(K, to=1)
    values = op.Cast(Y, to=1)
    q = op.Reshape(op.Cast(Q, to=1), op.Concat(batch_heads, rest, width, axis=0)) * inverse_root  # (B, H, G·N, D)
    new_rows = op.RMSNormalization(k_new, op.Expand(inverse_root, width), axis=-1, epsilon=epsilon)  # (B, H, N, D)
    queries = op.Shape(q, start=2, end=3)
    scores = op.MatMul(op.Concat(q, new_rows, axis=2), op.Transpose(keys, perm=[0, 1, 3, 2]))  # (B, H, (G+1)·N, P)
    s_query = op.Slice(scores, zero, queries, [2])
    s_new = op.Slice(scores, queries, end, [2])
    mean_square = op.Transpose(op.ReduceSumSquare(keys, [3], keepdims=1), perm=[0, 1, 3, 2]) / op.Cast(width, to=1)
    key_norm = op.Reciprocal(op.Sqrt(mean_square + epsilon))  # (B, H, 1, P)

    token = op.Unsqueeze(op.Cast(mask, to=1), [1, 2])  # (B, 1, 1, P+N)
    token_past = op.Slice(token, zero, past, [3])
    token_row = op.Slice(token, past, end, [3])  # (B, 1, 1, N)
    token_new = op.Transpose(token_row, perm=[0, 1, 3, 2])  # (B, 1, N, 1)
    weights = op.Exp(s_new * key_norm - root_d) * (token_past * token_new)  # (B, H, N, P)
    hidden = (token_past - 1.0) * 3.0e38  # 0 where there is a token, close to −∞ at padding

    # Invert the N × N triangle of the new tokens by merging, as in the blocked solve: T ← T − T (M_s ∘ L) T from T = I,
    # where M_s selects rows and columns in the same block of size 2s but in different blocks of size s.
    place = op.Range(0, op.Squeeze(n), 1)
    row = op.Unsqueeze(place, [1])
    before = op.Cast(row > place, to=1) * token_row  # (B, 1, N, N): 1 where column is an earlier new token, not padding
    self = op.Cast(op.Equal(row, place), to=1)
    k_hat = op.RMSNormalization(k_new, op.Expand(1.0, width), axis=-1, epsilon=epsilon)
    s_within = op.MatMul(new_rows, op.Transpose(k_hat, perm=[0, 1, 3, 2]))
    within = op.Exp(s_within - root_d) * (before * token_new)  # (B, H, N, N)
    inverse = op.Expand(self, op.Shape(within))  # OpenVINO's loops need a fixed rank
    sizes = op.Constant(value_ints=[1, 2, 4, 8, 16, 32])
    for i_merge in range(5):
        size = op.Gather(sizes, i_merge)
        two_blocks = op.Cast(op.Not(op.Equal(row / size, place / size)), to=1)
        merged = op.Gather(sizes, i_merge + 1)
        one_block = op.Cast(op.Equal(row / merged, place / merged), to=1)
        inverse = inverse - op.MatMul(op.MatMul(inverse, one_block * two_blocks * within), inverse)

    grouped = op.Concat(batch_heads, rest, n, n, axis=0)
    s_all = op.Reshape(op.MatMul(q, op.Transpose(k_new, perm=[0, 1, 3, 2])), grouped)  # (B, H, G, N, N)
    seen = op.Unsqueeze(op.Max(before, self), [2])  # (B, 1, 1, N, N): a token always sees itself
    s_self = op.Reshape(s_all + (seen - 1.0) * 3.0e38, op.Concat(batch_heads, queries, n, axis=0))  # (B, H, G·N, N)
    peak = op.ReduceMax(op.Concat(s_query + hidden, s_self, axis=3), [3])
    p = op.Exp(s_query + hidden - peak)  # (B, H, G·N, P)
    p_self = op.Exp(s_self - peak)
    sums = op.MatMul(op.Concat(p, weights, axis=2), values)  # (B, H, (G+1)·N, D)
    rhs = op.Cast(V_new, to=1) - op.Slice(sums, queries, end, [2])
    y_new = op.MatMul(inverse, rhs)  # (B, H, N, D)
    total = op.ReduceSum(p, [3]) + op.ReduceSum(p_self, [3])
    attended = (op.Slice(sums, zero, queries, [2]) + op.MatMul(p_self, y_new)) / total  # (B, H, G·N, D)
    O = op.CastLike(op.Reshape(attended, op.Shape(Q)), Q)  # noqa: E741
    Y_new = op.CastLike(y_new, V_new)
    return O, Y_new
