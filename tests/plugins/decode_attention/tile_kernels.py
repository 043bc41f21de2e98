"""A kernel around what decoding does with a tile's keys, so that it can be tested alone."""

# mypy: disallow-untyped-defs=False

import triton
import triton.language as tl

from lucid_deploy.plugins.decode_attention.tile import multiply_keys


@triton.jit
def squares_kernel(p_q, p_k, p_squares, ROWS: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, ADD: tl.constexpr):
    """Write the sums of squares of keys, as one row without ADD and as ROWS rows with it."""
    o_n, o_d = tl.arange(0, BLOCK), tl.arange(0, D)
    b_rows = (tl.load(p_q + tl.arange(0, ROWS)[:, None] * D + o_d[None, :]),)
    _, b_squares, _ = multiply_keys(b_rows, (), p_k, o_n < BLOCK, D, ROWS, BLOCK, D, ADD)
    if ADD:
        tl.store(p_squares + tl.arange(0, ROWS)[:, None] * BLOCK + o_n[None, :], b_squares)
    else:
        tl.store(p_squares + o_n, tl.sum(b_squares, axis=1))
