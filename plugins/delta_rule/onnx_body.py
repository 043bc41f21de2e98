"""The delta rule in standard ONNX operators, so that every runtime can run an exported file.

onnxscript compiles the Python below to ONNX functions; it never runs as Python. They compute in float32 whatever the
model's dtype. Graphs that decode one token per step use ``DeltaRuleOneToken``, all others ``DeltaRule``, which loops
over chunks of 64 tokens. B: batch, H: heads, N: new tokens, m: chunks, C: 64, D: key width, E: value width.
"""
# mypy: ignore-errors

from __future__ import annotations

import numpy as np
import onnx
from onnxscript import BOOL, FLOAT, INT64, graph, script, values
from onnxscript import opset23 as op

from lucid_deploy.plugins.block_inverse.onnx_body import IDENTITY, MASKS
from lucid_deploy.plugins.table import DOMAIN, VERSION

_LUCID = values.Opset(DOMAIN, VERSION)
TRUE = onnx.numpy_helper.from_array(np.array(True))


@script(_LUCID, default_opset=op)
def DeltaRule(query, key, value, log_decay, beta, state, scale: float):
    """Per chunk: R = T (V − (γ ∘ K) S), outputs scale · ((γ ∘ Q) S + (Γ ∘ QKᵀ) R), S ← γ_C S + ((γ_C/γ) ∘ K)ᵀ R."""
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    chunk = op.Constant(value_ints=[64])
    batch_heads = op.Shape(key, start=0, end=2)
    n = op.Shape(key, start=2, end=3)
    key_width = op.Shape(key, start=3, end=4)
    value_width = op.Shape(value, start=3, end=4)
    chunks = op.Max((n + chunk - 1) / chunk, one)
    tail = op.Concat(zero, chunks * chunk - n, axis=0)  # padding with β = 0 and log α = 0 has no effect
    by_key = op.Concat(batch_heads, chunks, chunk, key_width, axis=0)
    by_value = op.Concat(batch_heads, chunks, chunk, value_width, axis=0)
    by_gate = op.Concat(batch_heads, chunks, chunk, one, axis=0)
    q = op.Reshape(op.Pad(op.Cast(query, to=1) * scale, tail, None, [2]), by_key)  # (B, H, m, C, D)
    k = op.Reshape(op.Pad(op.Cast(key, to=1), tail, None, [2]), by_key)
    v = op.Reshape(op.Pad(op.Cast(value, to=1), tail, None, [2]), by_value)  # (B, H, m, C, E)
    g = op.Reshape(op.Pad(op.Max(log_decay, -1.0e4), tail, None, [2]), by_gate)  # (B, H, m, C, 1)
    b = op.Reshape(op.Pad(op.Cast(beta, to=1), tail, None, [2]), by_gate)

    # log γ_i/γ_j is summed over tokens j+1 … i directly: subtracting cumulative sums would cancel where α is small.
    ones = op.Expand(1.0, op.Constant(value_ints=[64, 64]))
    lower = op.Trilu(ones, upper=0)
    below = op.Trilu(ones, op.Constant(value_int=-1), upper=0)
    between = op.MatMul(lower, g * below)  # (B, H, m, C, C), 0 for i ≤ j
    gamma = op.Exp(between) * lower
    start = op.MatMul(lower, g)  # (B, H, m, C, 1): log γ
    to_end = op.Exp(op.Transpose(op.Slice(between, [63], [64], [3]), perm=[0, 1, 2, 4, 3]))  # γ_C/γ
    decay = op.Exp(op.Slice(start, [63], [64], [3]))  # (B, H, m, 1, 1): γ_C
    from_start = op.Exp(start)

    # Invert I + X, X = tril(diag(β)(Γ ∘ KKᵀ), −1): first both 32-wide diagonal blocks, by T ← T − T (M_s ∘ X) T, then
    # merge them: [A 0; C D]⁻¹ = [A⁻¹ 0; −D⁻¹ C A⁻¹ D⁻¹].
    k_turned = op.Transpose(k, perm=[0, 1, 2, 4, 3])
    system = op.MatMul(k, k_turned) * gamma * b  # (B, H, m, C, C), used below the diagonal only
    upper_rows, lower_rows = op.Split(system, axis=3, num_outputs=2)
    first_leaf, right = op.Split(upper_rows, axis=4, num_outputs=2)
    corner, last_leaf = op.Split(lower_rows, axis=4, num_outputs=2)
    leaves = op.Concat(op.Unsqueeze(first_leaf, [3]), op.Unsqueeze(last_leaf, [3]), axis=3)  # (B, H, m, 2, 32, 32)
    masks = op.Constant(value=MASKS)
    inverse = op.Constant(value=IDENTITY) - op.Gather(masks, 0) * leaves
    for i_merge in range(4):
        inverse = inverse - op.MatMul(op.MatMul(inverse, op.Gather(masks, i_merge + 1) * leaves), inverse)
    first = op.Gather(inverse, 0, axis=3)
    last = op.Gather(inverse, 1, axis=3)
    joined = op.Neg(op.MatMul(op.MatMul(last, corner), first))
    whole = op.Concat(op.Concat(first, right, axis=4), op.Concat(joined, last, axis=4), axis=3)  # right is 0
    solve = whole * op.Transpose(b, perm=[0, 1, 2, 4, 3])  # T
    attended = op.MatMul(q, k_turned) * gamma
    reads = op.Concat(k * from_start, q * from_start, axis=3)  # (B, H, m, 2C, D), multiplied by S
    writes = op.Transpose(k * to_end, perm=[0, 1, 2, 4, 3])  # (B, H, m, D, C)

    @graph()
    def step(i: INT64, goes_on: BOOL, s: FLOAT[...]):
        of_keys, of_queries = op.Split(op.MatMul(op.Gather(reads, i, axis=2), s), axis=2, num_outputs=2)
        corrections = op.MatMul(op.Gather(solve, i, axis=2), op.Gather(v, i, axis=2) - of_keys)  # R, (B, H, C, E)
        rows = of_queries + op.MatMul(op.Gather(attended, i, axis=2), corrections)
        s_next = s * op.Gather(decay, i, axis=2) + op.MatMul(op.Gather(writes, i, axis=2), corrections)
        return op.Identity(goes_on), s_next, op.Unsqueeze(rows, [0])

    # The ONNX standard stacks a loop's scan outputs along a new axis, but ONNX's ReferenceEvaluator concatenates them
    # along the first axis; the Unsqueeze in the loop and this Reshape give the same result with both.
    new_state, stacked = op.Loop(op.Squeeze(chunks), op.Constant(value=TRUE), state, body=step)
    rows = op.Reshape(stacked, op.Concat(chunks, batch_heads, chunk, value_width, axis=0))  # (m, B, H, C, E)
    by_token = op.Concat(batch_heads, chunks * chunk, value_width, axis=0)
    outputs = op.Reshape(op.Transpose(rows, perm=[1, 2, 0, 3, 4]), by_token)
    output = op.CastLike(op.Slice(outputs, zero, n, [2]), value)
    return output, new_state


@script(_LUCID, default_opset=op)
def DeltaRuleOneToken(query, key, value, log_decay, beta, state, scale: float):
    """Apply the delta rule to one token: update the state, then multiply the query by it."""
    k = op.Cast(key, to=1)  # (B, H, 1, D)
    decayed = state * op.Exp(op.Unsqueeze(log_decay, [3]))  # (B, H, D, E)
    missing = op.Cast(value, to=1) - op.MatMul(k, decayed)  # (B, H, 1, E)
    correction = op.Unsqueeze(op.Cast(beta, to=1), [3]) * missing
    new_state = decayed + op.MatMul(op.Transpose(k, perm=[0, 1, 3, 2]), correction)
    output = op.CastLike(op.MatMul(op.Cast(query, to=1) * scale, new_state), value)
    return output, new_state
