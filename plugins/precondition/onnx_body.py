"""The preconditioner in standard ONNX operators, so that every runtime can run an exported file.

onnxscript compiles the Python below to an ONNX function; it never runs as Python. It computes in float32. No tensor has
tokens × tokens elements: at most 1024 × 512 of a head's E exist at a time, besides diagonal blocks up to 128 wide.

``B`` batch, ``H`` key/value heads, ``N`` new tokens, ``P`` past tokens, ``D`` width.
"""
# mypy: ignore-errors

from __future__ import annotations

from onnxscript import opset23 as op
from onnxscript import script, values

from lucid_deploy.plugins.block_inverse.onnx_body import IDENTITY, MASKS
from lucid_deploy.plugins.table import DOMAIN, VERSION

_LUCID = values.Opset(DOMAIN, VERSION)


@script(_LUCID, default_opset=op)
def Precondition(K, V, K_past, Y_past, mask, epsilon: float):
    """Solve in blocks: Y_i = L_ii⁻¹ (V_i − Σ_{j<i} E_ij Y_j), with all L_ii⁻¹ computed at once by merging inverses."""
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    leaf = op.Constant(value_ints=[32])
    rest = op.Constant(value_ints=[-1])
    batch_heads = op.Shape(K, start=0, end=2)
    batch_one = op.Concat(op.Shape(K, start=0, end=1), one, axis=0)
    n = op.Shape(K, start=2, end=3)
    past = op.Shape(K_past, start=2, end=3)
    width = op.Shape(K, start=3, end=4)

    # Keys are scaled by d^-1/4, so that their product is K̂K̂ᵀ/√d; exp(−√d) multiplies the smaller mask, not the matrix.
    root_d = op.Sqrt(op.Cast(width, to=1))
    gain = op.Exp(op.Neg(root_d))
    scale = op.Expand(op.Reciprocal(op.Sqrt(root_d)), width)
    keys = op.Cast(op.Concat(K_past, K, axis=2), to=1)
    k_hat = op.RMSNormalization(keys, scale, axis=-1, epsilon=epsilon)  # (B, H, P+N, D)
    token = op.Unsqueeze(op.Cast(mask, to=1), [1, 3])  # (B, 1, P+N, 1)
    token_new = op.Slice(token, past, past + n, [2])

    # 32, 64 or 128 rows are solved at once, and up to 1024 form an outer block: for short prompts, the smallest sizes
    # that hold all new tokens, so that little is wasted.
    levels = op.Cast(n > 32, to=7) + op.Cast(n > 64, to=7)
    rows = leaf * (one + op.Cast(n > 32, to=7) + 2 * op.Cast(n > 64, to=7))
    outer = op.Min(op.Constant(value_ints=[1024]), (n + rows - 1) / rows * rows)
    outers = (n + outer - 1) / outer
    inner = outer / rows
    tail = op.Concat(zero, outers * outer - n, axis=0)
    k_pad = op.Pad(op.Slice(k_hat, past, past + n, [2]), tail, None, [2])  # (B, H, outers·outer, D)
    v_pad = op.Pad(op.Cast(V, to=1), tail, None, [2])
    t_pad = op.Pad(token_new, tail, None, [2])

    # Inverses of the 32-wide diagonal blocks: T ← T − T (M_s ∘ L) T, starting from T = I.
    k_leaf = op.Reshape(k_pad, op.Concat(batch_heads, rest, leaf, width, axis=0))  # (B, H, m, 32, D)
    t_leaf = op.Reshape(t_pad, op.Concat(batch_one, rest, leaf, one, axis=0))
    scores = op.MatMul(k_leaf, op.Transpose(k_leaf, perm=[0, 1, 2, 4, 3]))
    block = op.Exp(scores) * (t_leaf * gain * op.Transpose(t_leaf, perm=[0, 1, 2, 4, 3]))  # (B, H, m, 32, 32)
    masks = op.Constant(value=MASKS)
    inverse = op.Constant(value=IDENTITY) - op.Gather(masks, 0) * block
    for i_merge in range(4):
        inverse = inverse - op.MatMul(op.MatMul(inverse, op.Gather(masks, i_merge + 1) * block), inverse)

    # Merge two neighbouring inverses and the block between them into an inverse twice as wide:
    # [A 0; C D]⁻¹ = [A⁻¹ 0; −D⁻¹ C A⁻¹ D⁻¹].
    for _level in range(op.Squeeze(levels)):
        size = op.Shape(inverse, start=3, end=4)
        k_pairs = op.Reshape(k_pad, op.Concat(batch_heads, rest, size + size, width, axis=0))
        t_pairs = op.Reshape(t_pad, op.Concat(batch_one, rest, size + size, one, axis=0))
        k_upper, k_lower = op.Split(k_pairs, axis=3, num_outputs=2)
        t_upper, t_lower = op.Split(t_pairs, axis=3, num_outputs=2)
        scores = op.MatMul(k_lower, op.Transpose(k_upper, perm=[0, 1, 2, 4, 3]))
        between = op.Exp(scores) * (t_lower * gain * op.Transpose(t_upper, perm=[0, 1, 2, 4, 3]))
        two = op.Constant(value_ints=[2])
        pairs = op.Reshape(inverse, op.Concat(batch_heads, rest, two, size, size, axis=0))
        upper = op.Gather(pairs, 0, axis=3)
        lower = op.Gather(pairs, 1, axis=3)
        corner = op.Neg(op.MatMul(op.MatMul(lower, between), upper))
        zeros = op.Expand(0.0, op.Shape(corner))
        inverse = op.Concat(op.Concat(upper, zeros, axis=4), op.Concat(corner, lower, axis=4), axis=3)

    # Sum E Y over all rows before an outer block, in tiles of 512 columns so that E stays in the processor's cache.
    # Then solve the outer block, ``rows`` rows at a time.
    sent = op.Cast(Y_past, to=1) * op.Slice(token, zero, past, [2])  # Y of all rows so far, 0 at padding
    for i_outer in range(op.Squeeze(outers)):
        first = op.Unsqueeze(i_outer, [0]) * outer
        k_outer = op.Slice(k_pad, first, first + outer, [2])  # (B, H, outer, D)
        t_outer = op.Slice(t_pad, first, first + outer, [2])
        before = past + first
        received = op.Expand(0.0, op.Shape(k_outer))
        for j_tile in range(op.Squeeze((before + 511) / 512)):
            low = op.Unsqueeze(j_tile, [0]) * 512
            high = op.Min(low + 512, before)
            k_j = op.Slice(k_hat, low, high, [2])
            weights = op.Exp(op.MatMul(k_outer, op.Transpose(k_j, perm=[0, 1, 3, 2])))  # (B, H, outer, up to 512)
            received = received + op.MatMul(weights, op.Slice(sent, low, high, [2]))
        rhs_outer = op.Slice(v_pad, first, first + outer, [2]) - received * (t_outer * gain)
        # The first block is solved before the loop, where it would need a MatMul of empty tensors; WebGPU has none.
        rhs_0 = op.Slice(rhs_outer, zero, rows, [2])
        y_0 = op.MatMul(op.Gather(inverse, i_outer * op.Squeeze(inner), axis=2), rhs_0)
        solved = y_0 * op.Slice(t_outer, zero, rows, [2])
        for i_block in range(op.Squeeze(inner - 1)):
            start = (op.Unsqueeze(i_block, [0]) + 1) * rows
            t_i = op.Slice(t_outer, start, start + rows, [2])
            k_i = op.Slice(k_outer, start, start + rows, [2])
            k_before = op.Slice(k_outer, zero, start, [2])
            weights = op.Exp(op.MatMul(k_i, op.Transpose(k_before, perm=[0, 1, 3, 2])))  # (B, H, rows, start)
            rhs = op.Slice(rhs_outer, start, start + rows, [2]) - op.MatMul(weights, solved) * (t_i * gain)
            y_i = op.MatMul(op.Gather(inverse, i_outer * op.Squeeze(inner) + i_block + 1, axis=2), rhs)
            solved = op.Concat(solved, y_i * t_i, axis=2)
        sent = op.Concat(sent, solved, axis=2)
    y = op.CastLike(op.Slice(sent, past, past + n, [2]), V)
    Y = op.Where(op.Cast(token_new, to=9), y, V)
    return Y
