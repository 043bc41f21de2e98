"""Plain causal attention in the style of our kernels: what the solve's inner loop is compared with.

It is compiled and read, never shipped: one query head per key/value head, no mask of padding, no past, whole tiles.
Its weights in the half types are of one part; float32 is multiplied by float16 parts, as the solve multiplies it, but
without the powers of two that bring the solve's factors into float16's range.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

from lucid_deploy.plugins.shared.kernel import add_float16_products, load_rows


@triton.jit
def multiply(b_left, b_right, b_acc):
    """Return ``b_acc + b_left @ b_right`` in float32; of float32 factors the product is summed from 0."""
    if b_left.dtype == tl.float32:
        b_acc += add_float16_products(b_left, b_right, tl.zeros_like(b_acc))
    else:
        b_acc = tl.dot(b_left, b_right, b_acc)
    return b_acc


@triton.jit(do_not_specialize=["n_new", "width_units"])
def causal_attention_kernel(
    p_q,
    p_k,
    p_v,
    p_o,
    n_new,
    width_units,
    scale,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH_UNIT: tl.constexpr,
):
    """Attend with BLOCK_M queries of one head to all tokens up to theirs, by online softmax.

    Args:
        p_q, p_k, p_v, p_o: ``(B, H, n_new, width)``.
        width_units: width / WIDTH_UNIT.
        scale: log₂e / √width.
    """
    width = width_units * WIDTH_UNIT
    i_row = tl.program_id(0)
    o_head = tl.program_id(1).to(tl.int64) * n_new * width
    o_m = tl.arange(0, BLOCK_M)
    o_n = tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, BLOCK_D)
    i_first = i_row * BLOCK_M
    o_rows = o_head + i_first.to(tl.int64) * width
    m_rows = i_first + o_m < n_new
    b_q = load_rows(p_q + o_rows, o_m, m_rows, width, BLOCK_D)
    b_peak = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    b_total = tl.zeros((BLOCK_M,), tl.float32)
    b_acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for i in range(0, i_row * (BLOCK_M // BLOCK_N)):  # tiles below the diagonal: the loop that is compared
        o_tile = o_head + tl.cast(i * BLOCK_N, tl.int64) * width
        m_tile = i * BLOCK_N + o_n < n_new
        b_k = load_rows(p_k + o_tile, o_n, m_tile, width, BLOCK_D)
        b_scores = multiply(b_q, tl.trans(b_k), tl.zeros((BLOCK_M, BLOCK_N), tl.float32)) * scale
        b_new = tl.maximum(b_peak, tl.max(b_scores, 1))
        b_p = tl.exp2(b_scores - b_new[:, None])
        b_shrink = tl.exp2(b_peak - b_new)
        b_total = b_total * b_shrink + tl.sum(b_p, 1)
        b_v = load_rows(p_v + o_tile, o_n, m_tile, width, BLOCK_D)
        b_acc = b_acc * b_shrink[:, None]
        b_acc = multiply(b_p.to(b_v.dtype), b_v, b_acc)
        b_peak = b_new
    p_out = p_o + o_rows + o_m[:, None] * width + o_d[None, :]
    tl.store(p_out, (b_acc / b_total[:, None]).to(p_o.dtype.element_ty), mask=m_rows[:, None] & (o_d < width)[None, :])
