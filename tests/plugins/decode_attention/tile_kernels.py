"""Kernels around what decoding does with a tile's keys, so that it can be tested alone."""

# mypy: disallow-untyped-defs=False

import triton
import triton.language as tl

from lucid_deploy.plugins.decode_attention.parts import add_own_products, diagonals
from lucid_deploy.plugins.decode_attention.parts_float8 import unpack_pairs, weight_power
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


@triton.jit
def own_squares_kernel(p_k, p_squares, PARTS: tl.constexpr, TOKENS: tl.constexpr, D: tl.constexpr):
    """Write the sums of squares of keys whose tokens are dealt to parts."""
    o_n = tl.arange(0, PARTS)[:, None] * TOKENS + tl.arange(0, TOKENS)[None, :]
    b_k = tl.load(p_k + o_n[:, :, None] * D + tl.arange(0, D)[None, None, :])
    b_sums = add_own_products(b_k, tl.zeros((PARTS * TOKENS // 16, 16, 16), tl.float32))
    tl.store(p_squares + o_n, diagonals(b_sums, PARTS))


@triton.jit
def unpack_kernel(p_pairs, p_low, p_high, SIZE: tl.constexpr):
    """Write E4M3 in the bytes of int16 as float16."""
    o_n = tl.arange(0, SIZE)
    b_low, b_high = unpack_pairs(tl.load(p_pairs + o_n))
    tl.store(p_low + o_n, b_low)
    tl.store(p_high + o_n, b_high)


@triton.jit
def power_kernel(p_largest, p_power, SIZE: tl.constexpr):
    """Write the power of two of weights for each largest scale."""
    o_n = tl.arange(0, SIZE)
    tl.store(p_power + o_n, weight_power(tl.load(p_largest + o_n)))
