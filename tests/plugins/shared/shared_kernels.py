"""Kernels around the device functions, so that they can be tested alone. Imported in an interpreter's process."""

# mypy: disallow-untyped-defs=False

import triton
import triton.language as tl

from lucid_deploy.plugins.shared.kernel import (
    add_float16_products,
    add_product,
    cut_tf32,
    float16_parts,
    float16_power,
    inverse_norms,
    inverse_power,
    load_columns,
    load_rows,
    load_tokens,
    nearest_tf32,
    round_tf32,
    split_tf32,
)


@triton.jit
def norms_kernel(p_k, p_mask, p_rows, p_tokens, p_norms, n_rows, width, epsilon, BLOCK: tl.constexpr, D: tl.constexpr):
    """Load one block of rows and write it out with its tokens and norms."""
    o_n, o_d = tl.arange(0, BLOCK), tl.arange(0, D)
    m_n = o_n < n_rows
    b_k = load_rows(p_k, o_n, m_n, width, D)
    tl.store(p_rows + o_n[:, None] * D + o_d[None, :], b_k)
    tl.store(p_tokens + o_n, load_tokens(p_mask, o_n, m_n).to(tl.int8))
    tl.store(p_norms + o_n, inverse_norms(b_k, m_n, width, epsilon))


@triton.jit
def product_kernel(p_e, p_y, p_acc, p_out, BLOCK: tl.constexpr):
    """Add the product of two blocks to a third."""
    o = tl.arange(0, BLOCK)
    o_block = o[:, None] * BLOCK + o[None, :]
    b_e, b_y, b_acc = tl.load(p_e + o_block), tl.load(p_y + o_block), tl.load(p_acc + o_block)
    b_acc = add_float16_products(b_e, b_y, b_acc) if b_y.dtype == tl.float32 else add_product(b_e, b_y, b_acc)
    tl.store(p_out + o_block, b_acc)


@triton.jit
def columns_kernel(p_k, p_out, i_first, n_rows, width, BLOCK: tl.constexpr, D: tl.constexpr):
    """Load D columns of a block of rows and write them out."""
    o_n, o_d = tl.arange(0, BLOCK), tl.arange(0, D)
    tl.store(p_out + o_n[:, None] * D + o_d[None, :], load_columns(p_k, o_n, o_n < n_rows, i_first, width, D))


@triton.jit
def parts_kernel(p_x, p_cut, p_nearest, p_rounded, p_split, BLOCK: tl.constexpr):
    """Split numbers into tf32 parts in all ways; all high parts come first."""
    o = tl.arange(0, BLOCK)
    b_high, b_low = cut_tf32(tl.load(p_x + o))
    tl.store(p_cut + o, b_high)
    tl.store(p_cut + BLOCK + o, b_low)
    b_high, b_low = nearest_tf32(tl.load(p_x + o))
    tl.store(p_nearest + o, b_high)
    tl.store(p_nearest + BLOCK + o, b_low)
    b_high, b_low = round_tf32(tl.load(p_x + o))
    tl.store(p_rounded + o, b_high)
    tl.store(p_rounded + BLOCK + o, b_low)
    b_high, b_low = split_tf32(tl.load(p_x + o), None)
    tl.store(p_split + o, b_high)
    tl.store(p_split + BLOCK + o, b_low)


@triton.jit
def float16_parts_kernel(p_x, p_parts, BLOCK: tl.constexpr):
    """Split numbers into float16 parts; all high parts come first."""
    o = tl.arange(0, BLOCK)
    b_high, b_low = float16_parts(tl.load(p_x + o))
    tl.store(p_parts + o, b_high)
    tl.store(p_parts + BLOCK + o, b_low)


@triton.jit
def powers_kernel(p_largest, p_powers, p_inverses, BLOCK: tl.constexpr):
    """Write the powers of rows with these largest numbers, and their inverses."""
    o = tl.arange(0, BLOCK)
    b_powers = float16_power(tl.load(p_largest + o))
    tl.store(p_powers + o, b_powers)
    tl.store(p_inverses + o, inverse_power(b_powers))
