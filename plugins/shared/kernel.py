"""Triton functions shared by several kernels: loading rows, key norms, products of weights with values.

Name prefixes in all kernels: ``p_`` pointer, ``i_`` index, ``o_`` offsets, ``m_`` mask, ``b_`` block, ``n_`` count.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

EXPONENT = tl.constexpr(0x7F800000)  # float32's exponent bits
ONE = tl.constexpr(0x3F800000)  # the bits of 1
LEAST = tl.constexpr(2.0**-90)  # lower bound for a row's largest magnitude
HALF_POWER = tl.constexpr(14 << 23)  # adding it to a float32's bits multiplies the float by 2¹⁴
LOW_BITS = tl.constexpr(2.0**13)  # tf32 lacks the lowest 13 of float32's 24 significant bits
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)  # Triton's interpreter cannot run inline PTX


@triton.jit
def load_rows(p_rows, o_n, m_n, width, BLOCK_D: tl.constexpr):
    """Load rows as ``(len(o_n), BLOCK_D)``; rows where ``m_n`` is false and columns from ``width`` on are 0."""
    o_d = tl.arange(0, BLOCK_D)
    return tl.load(p_rows + o_n[:, None] * width + o_d[None, :], mask=m_n[:, None] & (o_d < width)[None, :], other=0.0)


@triton.jit
def load_columns(p_rows, o_n, m_n, i_first, width, BLOCK: tl.constexpr):
    """Load BLOCK columns of rows, starting at ``i_first``: ``(len(o_n), BLOCK)``, masked as in :func:`load_rows`."""
    o_d = i_first + tl.arange(0, BLOCK)
    return tl.load(p_rows + o_n[:, None] * width + o_d[None, :], mask=m_n[:, None] & (o_d < width)[None, :], other=0.0)


@triton.jit
def load_tokens(p_mask, o_n, m_n):
    """Return the mask of positions that are in ``m_n`` and are not padding."""
    return m_n & (tl.load(p_mask + o_n, mask=m_n, other=0) != 0)


@triton.jit
def inverse_norms(b_k, m_n, width, epsilon):
    """Return 1 / sqrt(mean(K²) + ε) of each row; 0 where ``m_n`` is false (with ε = 0 it would be infinite there)."""
    b_square = b_k.to(tl.float32) * b_k.to(tl.float32)
    return tl.where(m_n, tl.rsqrt(tl.sum(b_square, axis=1) / width + epsilon), 0.0)


@triton.jit
def load_scales(p_scales, o_n, m_n):
    """Load one float32 scale per row; 0 where ``m_n`` is false."""
    return tl.load(p_scales + o_n, mask=m_n, other=0.0)


@triton.jit
def row_shifts(b_norms, epsilon, shift, diagonal):
    """Return what to subtract from the base-2 exponents of each row of E; this also divides the row by L_ii.

    ``diagonal`` is 0 for L_ii = 1, and 1 for L_ii = exp(√d(m/(m + ε) − 1)), where m is the key's mean square.
    ``b_norms`` is 1 / sqrt(m + ε).
    """
    return shift - shift * diagonal * epsilon * b_norms * b_norms


@triton.jit
def bfloat16_parts(b_float):
    """Split float32 into a sum of two bfloat16 numbers, with a relative error of 2⁻¹⁶.

    The high part is truncated, not rounded. That costs one bit of the low part, but saves a conversion to bfloat16 and
    back, which runs at an eighth of the usual instruction rate.
    """
    b_high = (b_float.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
    return b_high.to(tl.bfloat16), (b_float - b_high).to(tl.bfloat16)


@triton.jit
def cut_tf32(b_float):
    """Split float32 into a high part, truncated to tf32, and the exact remainder.

    Tensor cores ignore at most the last two of the remainder's 13 bits, a relative error of 2⁻²¹. This takes two
    instructions; a conversion that rounds and preserves infinity takes five.
    """
    b_high = (b_float.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    return b_high, b_float - b_high


@triton.jit
def round_tf32(b_float):
    """Split float32 into two rounded tf32 parts, for operands that are small or are split outside a loop.

    Rounding gives low parts of both signs, so that the omitted low × low products cancel in the sum.
    """
    b_high = ((b_float.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)
    b_rest = b_float - b_high
    return b_high, ((b_rest.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def nearest_tf32(b_float):
    """Split float32 into the nearest tf32 number and the exact remainder.

    Tensor cores ignore at most the remainder's last bit, a relative error of 2⁻²³. This takes three instructions;
    remainders have both signs, as in :func:`round_tf32`.
    """
    b_high = ((b_float.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)
    return b_high, b_float - b_high


@triton.jit
def split_tf32(b_float, PAIRS: tl.constexpr):
    """Split as :func:`nearest_tf32` does, using only float32 arithmetic; magnitudes above 4e34 give NaN.

    2¹³x + x, rounded to 24 bits, minus 2¹³x is x rounded to 11 bits, or to 10 if the sum and 2¹³x differ in exponent;
    tensor cores then ignore a relative part of up to 2⁻²². This takes three instructions. With PAIRS (compute
    capability 10.0 and newer), each of them processes two numbers, in adjacent registers.
    """
    if PAIRS and not INTERPRETED:
        b_high, b_low = tl.inline_asm_elementwise(
            """{
            .reg .b64 x, high, low, factor, less;
            mov.b64 x, {$4, $5};
            mov.b64 factor, 0x4600040046000400;
            mov.b64 less, 0xc6000000c6000000;
            mul.rn.f32x2 low, x, factor;
            fma.rn.f32x2 high, x, less, low;
            sub.rn.f32x2 low, x, high;
            mov.b64 {$0, $1}, high;
            mov.b64 {$2, $3}, low;
            }""",
            "=r,=r,=r,=r,r,r",
            [b_float],
            dtype=(tl.float32, tl.float32),
            is_pure=True,
            pack=2,
        )  # the factors are 8193 and -8192
    else:
        b_high = tl.fma(b_float, -LOW_BITS, b_float * (LOW_BITS + 1.0))
        b_low = b_float - b_high
    return b_high, b_low


@triton.jit
def cut_pairs_tf32(b_float, PAIRS: tl.constexpr):
    """Split as :func:`cut_tf32` does; with PAIRS, three instructions split two numbers."""
    b_high, b_low = cut_tf32(b_float)
    if PAIRS and not INTERPRETED:
        b_low = tl.inline_asm_elementwise(
            """{
            .reg .b64 x, y;
            mov.b64 x, {$2, $3};
            mov.b64 y, {$4, $5};
            sub.rn.f32x2 x, x, y;
            mov.b64 {$0, $1}, x;
            }""",
            "=r,=r,r,r,r,r",
            [b_float, b_high],
            dtype=tl.float32,
            is_pure=True,
            pack=2,
        )
    return b_high, b_low


@triton.jit
def opaque_copy(b_float):
    """Copy float32 numbers with an instruction that is opaque to the compiler.

    An operand of products in a loop then stays in shared memory; if the compiler knew that it is the same for all parts
    of a batch, it would move it to registers.
    """
    if not INTERPRETED:
        b_float = tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r", [b_float], dtype=tl.float32, is_pure=False, pack=1
        )
    return b_float


@triton.jit
def multiply_add(b_first, b_second, b_third, PAIRS: tl.constexpr):
    """Return ``b_first * b_second + b_third`` in float32, rounded once; with PAIRS, one instruction computes two."""
    if PAIRS and not INTERPRETED:
        b_sum = tl.inline_asm_elementwise(
            """{
            .reg .b64 x, y, z;
            mov.b64 x, {$2, $3};
            mov.b64 y, {$4, $5};
            mov.b64 z, {$6, $7};
            fma.rn.f32x2 x, x, y, z;
            mov.b64 {$0, $1}, x;
            }""",
            "=r,=r,r,r,r,r,r,r",
            [b_first, b_second, b_third],
            dtype=tl.float32,
            is_pure=True,
            pack=2,
        )
    else:
        b_sum = tl.fma(b_first, b_second, b_third)
    return b_sum


@triton.jit
def add_tf32_products(b_high, b_low, b_rows, b_acc):
    """Return ``b_acc + (b_high + b_low) @ b_rows`` in float32, for float32 rows and parts from :func:`nearest_tf32`.

    It adds three products, the small ones first, and omits low × low.
    """
    b_rows_high, b_rows_low = nearest_tf32(b_rows)
    b_acc = tl.dot(b_low, b_rows_high, b_acc, input_precision="tf32")
    b_acc = tl.dot(b_high, b_rows_low, b_acc, input_precision="tf32")
    return tl.dot(b_high, b_rows_high, b_acc, input_precision="tf32")


@triton.jit
def float16_parts(b_float):
    """Split float32 into the nearest float16 number and the float16 number nearest to the remainder.

    The relative error is at most 2⁻²³ for magnitudes above 2⁻², the absolute error at most 2⁻²⁵ below. Magnitudes of
    65520 and more overflow, so the caller scales the input by a power of two first.
    """
    b_high = b_float.to(tl.float16)
    return b_high, (b_float - b_high.to(tl.float32)).to(tl.float16)


@triton.jit
def float16_power(largest):
    """Return the power of two by which to multiply rows before :func:`float16_parts`, given their largest magnitude.

    It scales that magnitude to 2¹⁴ … 2¹⁵, or to less if it is below 2⁻⁹⁰. For infinity and NaN the power is finite.
    """
    bits = tl.maximum(largest, LEAST).to(tl.int32, bitcast=True) & EXPONENT
    bits = -bits + ONE + ONE  # the bits of 1 / 2ᵏ: twice those of 1, minus those of 2ᵏ
    return (bits + HALF_POWER).to(tl.float32, bitcast=True)


@triton.jit
def inverse_power(power):
    """Return 1 / ``power`` for a power of two from :func:`float16_power`."""
    return (-power.to(tl.int32, bitcast=True) + ONE + ONE).to(tl.float32, bitcast=True)


@triton.jit
def add_float16_products(b_rows, b_others, b_acc):
    """Return ``b_acc + b_rows @ b_others`` for float32 operands in the range of :func:`float16_parts`.

    It adds three products, the small ones first, and omits low × low. They are as exact as three tf32 products, and
    tensor cores multiply float16 twice as fast as tf32.
    """
    b_high, b_low = float16_parts(b_rows)
    b_others_high, b_others_low = float16_parts(b_others)
    b_acc = tl.dot(b_low, b_others_high, b_acc)
    b_acc = tl.dot(b_high, b_others_low, b_acc)
    return tl.dot(b_high, b_others_high, b_acc)


@triton.jit
def add_row_product(b_rows, b_others, b_acc):
    """Return ``b_acc + b_rows @ b_others`` in float32, for operands in the dtype of the operator's tensors."""
    if b_rows.dtype == tl.float32:
        b_high, b_low = nearest_tf32(b_rows)
        b_acc = add_tf32_products(b_high, b_low, b_others, b_acc)
    else:
        b_acc = tl.dot(b_rows, b_others, b_acc)
    return b_acc


@triton.jit
def add_product(b_e, b_y, b_acc):
    """Return ``b_acc + b_e @ b_y`` in float32, for float32 weights in float16's range and float16 or bfloat16 values.

    For bfloat16 values the weights are split into two bfloat16 parts: a single part (8 bits) would lose a digit on
    correlated keys, and tf32 (11 bits) would cost as much as two parts and need converted values.
    """
    if b_y.dtype == tl.bfloat16:
        b_high, b_low = bfloat16_parts(b_e)
        b_acc = tl.dot(b_high, b_y, b_acc)
        b_acc = tl.dot(b_low, b_y, b_acc)
    else:
        b_acc = tl.dot(b_e.to(tl.float16), b_y, b_acc)
    return b_acc
