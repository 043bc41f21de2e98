"""Triton functions that invert unit lower triangular blocks: substitution up to 16 × 16, merging above."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

LEAF = tl.constexpr(16)  # width of the blocks inverted by substitution: the smallest that tensor cores multiply


@triton.jit
def merge_halves(b_x, b_t, HALF: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    """Return T − T (M ∘ X) T, which merges T's HALF-wide inverses in pairs; M selects the block that joins a pair."""
    o_row = tl.arange(0, BLOCK)[:, None]
    o_column = tl.arange(0, BLOCK)[None, :]
    m_merge = (o_row // (2 * HALF) == o_column // (2 * HALF)) & (o_row // HALF != o_column // HALF)
    b_product = tl.dot(tl.where(m_merge, b_x, 0.0), b_t, input_precision=PRECISION)
    return b_t - tl.dot(b_t, b_product, input_precision=PRECISION)


@triton.jit
def invert_unit_lower(b_x, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    """Return (I + X)⁻¹ for a strictly lower triangular ``(BLOCK, BLOCK)`` X, in float32, by stable methods.

    All 16-wide diagonal blocks are inverted by substitution at once. Then neighbouring inverses are merged until one is
    left. PRECISION gives the operands of products at least 16 significant bits; sums are float32.
    """
    N_LEAVES: tl.constexpr = BLOCK // LEAF
    o_block = tl.arange(0, N_LEAVES)
    o_leaf = tl.arange(0, LEAF)
    m_diagonal = (o_block[:, None] == o_block[None, :])[:, None, :, None]
    b_x_leaves = tl.sum(tl.where(m_diagonal, tl.reshape(b_x, (N_LEAVES, LEAF, N_LEAVES, LEAF)), 0.0), axis=2)
    b_eye = tl.where(o_leaf[:, None] == o_leaf[None, :], 1.0, 0.0)
    b_leaves = tl.zeros((N_LEAVES, LEAF, LEAF), tl.float32) + b_eye[None, :, :]
    for i in range(LEAF - 1):
        b_column = tl.sum(tl.where(o_leaf[None, None, :] == i, b_x_leaves, 0.0), axis=2)
        b_solved = tl.sum(tl.where(o_leaf[None, :, None] == i, b_leaves, 0.0), axis=1)
        b_leaves -= b_column[:, :, None] * b_solved[:, None, :]
    b_t = tl.reshape(tl.where(m_diagonal, b_leaves[:, :, None, :], 0.0), (BLOCK, BLOCK))
    for level in tl.static_range(4):
        if (LEAF << level) < BLOCK:
            b_t = merge_halves(b_x, b_t, LEAF << level, BLOCK, PRECISION)
    return b_t
