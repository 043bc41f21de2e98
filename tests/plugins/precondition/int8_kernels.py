"""Kernels around the functions for E in bfloat16 and int8. Imported in an interpreter's process."""

# mypy: disallow-untyped-defs=False

import triton
import triton.language as tl

from lucid_deploy.plugins.precondition.int8_part import (
    add_two_products,
    bfloat16_and_int8,
    byte_order,
    in_byte_order,
    store_bytes,
)


@triton.jit
def parts_kernel(p_e, p_high, p_low, BLOCK: tl.constexpr):
    """Split weights."""
    o = tl.arange(0, BLOCK)
    b_high, b_low = bfloat16_and_int8(tl.load(p_e + o))
    tl.store(p_high + o, b_high)
    tl.store(p_low + o, b_low)


@triton.jit
def order_kernel(p_places, p_moved, BLOCK: tl.constexpr):
    """Write where each token's byte stands, and the tokens in that order."""
    o = tl.arange(0, BLOCK)
    tl.store(p_places + o, byte_order(o))
    b_tokens = tl.broadcast_to(o[None, :], (2, BLOCK))
    o_two = tl.arange(0, 2)[:, None] * BLOCK + o[None, :]
    tl.store(p_moved + o_two, in_byte_order(b_tokens, 2, BLOCK))


@triton.jit
def tile_kernel(p_e, p_y, p_tokens, p_scales, p_bytes, p_acc, i_tile, BLOCK: tl.constexpr, D: tl.constexpr,
                CHUNK: tl.constexpr):  # fmt: skip
    """Store a tile of Y in bytes, and add E's products with it to ``(BLOCK, D)``, by columns of CHUNK."""
    o_n, o_d = tl.arange(0, BLOCK), tl.arange(0, CHUNK)
    m_n = tl.load(p_tokens + o_n) != 0
    b_accs = ()
    for i in tl.static_range(0, D, CHUNK):
        o_y = o_n[:, None] * D + i + o_d[None, :]
        store_bytes(p_scales, p_bytes, i_tile, tl.load(p_y + o_y).to(tl.float32), m_n, i, BLOCK, D, CHUNK)
        b_accs = b_accs + (tl.load(p_acc + o_y),)  # type: ignore[assignment]  # noqa: RUF005
    b_e = tl.load(p_e + o_n[:, None] * BLOCK + o_n[None, :])
    b_accs = add_two_products(b_e, p_y, m_n, D, p_scales, p_bytes, i_tile, b_accs, BLOCK, D, CHUNK)
    for i in tl.static_range(len(b_accs)):
        tl.store(p_acc + o_n[:, None] * D + i * CHUNK + o_d[None, :], b_accs[i])
