"""A kernel around the device function, so that it can be tested alone. Imported in an interpreter's process."""

# mypy: disallow-untyped-defs=False

import triton
import triton.language as tl

from lucid_deploy.plugins.block_inverse.kernel import invert_unit_lower


@triton.jit
def invert_kernel(p_x, p_inverse, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    """Invert one ``(BLOCK, BLOCK)`` block a program."""
    o = tl.arange(0, BLOCK)
    o_block = tl.program_id(0) * BLOCK * BLOCK + o[:, None] * BLOCK + o[None, :]
    tl.store(p_inverse + o_block, invert_unit_lower(tl.load(p_x + o_block), BLOCK, PRECISION))
