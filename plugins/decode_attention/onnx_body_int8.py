"""Decode attention of one new token over an int8 cache, in standard ONNX operators.

onnxscript compiles the Python below to an ONNX function; it never runs as Python. It computes in float32 for models of
every type, except for the product with Y, which multiplies integers.

No artifact contains it. Sessions do not import onnxscript but read ``int8_unit.onnxtxt`` and ``int8_training.onnxtxt``.
After a change, write these with ``python -m lucid_deploy.export.functions``.

``B`` batch, ``H`` key/value heads, ``G`` query heads per key/value head, ``P`` past tokens, ``D`` width.
"""
# mypy: ignore-errors

from __future__ import annotations

from onnxscript import opset23 as op
from onnxscript import script, values

from lucid_deploy.plugins.table import DOMAIN, VERSION

_LUCID = values.Opset(DOMAIN, VERSION)


@script(_LUCID, default_opset=op)
def DecodeAttentionInt8(Q, K_new, V_new, K, Y, K_scale, Y_scale, mask, epsilon: float):
    """As ``onnx_body.DecodeAttention``, with K's scales applied to the scores and Y's scales to the weights.

    Each row of weights is divided by its largest and written as four digits −64 … 64 in base 128: its error is at most
    2^-28, less than float32's rounding of the sum. Digits are stored as uint8 with 64 added, since a product of uint8
    above 128 with int8 saturates on processors without VNNI. A token adds at most 64 · 127, so int32 holds sums over
    2^18 tokens.
    """
    rest = op.Constant(value_ints=[-1])
    one_row = op.Constant(value_ints=[0, 0, 1, -1])
    batch_heads = op.Shape(K_new, start=0, end=2)
    width = op.Shape(K_new, start=3, end=4)
    d = op.Cast(width, to=1)
    root_d = op.Sqrt(d)
    k_new = op.Cast(K_new, to=1)
    keys = op.Cast(K, to=1)  # (B, H, P, D), without their scales
    # Reshape instead of Transpose: onnxruntime would move the scores' transposition after the product with the scales.
    k_scale = op.Reshape(K_scale, one_row)  # (B, H, 1, P)
    y_scale = op.Reshape(Y_scale, one_row)
    q = op.Reshape(op.Cast(Q, to=1), op.Concat(batch_heads, rest, width, axis=0)) / root_d  # (B, H, G, D)
    new_row = op.RMSNormalization(k_new, op.Expand(1.0, width), axis=-1, epsilon=epsilon)  # (B, H, 1, D)
    scores = op.MatMul(keys, op.Transpose(op.Concat(q, new_row, axis=2), perm=[0, 1, 3, 2]))  # (B, H, P, G+1)
    by_rows = op.Transpose(scores, perm=[0, 1, 3, 2]) * k_scale
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
    numbers = op.Reshape(op.ReduceSumSquare(keys, [3], keepdims=1), one_row)
    squares = numbers * k_scale * k_scale  # (B, H, 1, P): d · mean square
    weights = op.Exp(s_new / op.Sqrt(squares + d * epsilon) - root_d + hidden_to_new)  # (B, H, 1, P)
    joined = op.Concat(p_past, weights, axis=2)  # (B, H, G+1, P)

    factors = op.Flatten(joined * y_scale, axis=3)  # (B·H·(G+1), P); none is below 0
    largest = op.Max(op.ReduceMax(factors, [1], keepdims=0), 1.5777218e-30)  # 2^-99, so that unit_3 is normal
    middle = op.Cast(64, to=2)
    middles = op.Expand(middle, op.Shape(largest))
    unit_0 = largest * 0.015625
    unit_1 = unit_0 * 0.0078125
    unit_2 = unit_1 * 0.0078125
    unit_3 = unit_2 * 0.0078125
    digit_0 = op.QuantizeLinear(factors, unit_0, middles, axis=0)
    left_1 = factors - op.DequantizeLinear(digit_0, unit_0, middles, axis=0)
    digit_1 = op.QuantizeLinear(left_1, unit_1, middles, axis=0)
    left_2 = left_1 - op.DequantizeLinear(digit_1, unit_1, middles, axis=0)
    digit_2 = op.QuantizeLinear(left_2, unit_2, middles, axis=0)
    left_3 = left_2 - op.DequantizeLinear(digit_2, unit_2, middles, axis=0)
    digit_3 = op.QuantizeLinear(left_3, unit_3, middles, axis=0)
    by_digit = op.Concat(digit_0, digit_1, digit_2, digit_3, axis=1)
    digits = op.Reshape(by_digit, op.Shape(joined) * op.Constant(value_ints=[1, 1, 4, 1]), allowzero=1)
    products = op.Cast(op.MatMulInteger(digits, Y, middle), to=1)  # (B, H, 4·(G+1), D)
    parts = op.Reshape(products, op.Concat(batch_heads, rest, [4], width, axis=0))  # (B, H, G+1, 4, D)
    # ReduceMax may ignore NaN, but the sum has it. Without a past, products are undefined and the sum makes unit 0.
    unit = op.Min(largest, op.ReduceSum(factors, [1], keepdims=0) * 1152921504606846976.0)
    shares = op.Constant(value_floats=[0.015625, 0.0001220703125, 9.5367431640625e-07, 7.450580596923828e-09])
    powers = op.Unsqueeze(shares, [1])  # (4, 1)
    of_one = op.ReduceSum(parts * powers, [3], keepdims=0)  # (B, H, G+1, D)
    sums = of_one * op.Reshape(unit, op.Concat(batch_heads, rest, [1], axis=0))
    y_new = op.Cast(V_new, to=1) - op.Slice(sums, [-1], [9223372036854775807], [2])
    attended = op.Slice(sums, [0], [-1], [2]) + p_self * y_new  # (B, H, G, D)
    O = op.CastLike(op.Reshape(attended, op.Shape(Q)), Q)  # noqa: E741
    Y_new = op.CastLike(y_new, V_new)
    return O, Y_new
