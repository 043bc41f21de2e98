"""The delta rule as kernels: two for many tokens, one for one.

Many tokens go by chunks. What depends on keys and gates alone, T and the weights of the queries, is made for all
chunks at once (``delta_chunk_kernel``). Then a program takes a head and some columns of its state, holds them in
registers, and goes through the chunks in order (``delta_state_kernel``): columns of S never meet, so programs never
wait for each other.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

from lucid_deploy.plugins.block_inverse.kernel import invert_unit_lower
from lucid_deploy.plugins.shared.kernel import load_rows

LOWEST_LOG = tl.constexpr(-1e4)  # as in blocked.py: its exponential is 0, and sums of it stay finite


@triton.jit
def load_logs(p_log_decay, o_n, m_n):
    """Load log α, 0 outside ``m_n``."""
    return tl.where(m_n, tl.maximum(tl.load(p_log_decay + o_n, mask=m_n, other=0.0), LOWEST_LOG), 0.0)


@triton.jit
def times(b_rows, b_float):
    """Return ``b_rows @ b_float`` in float32, for rows in the tensors' type and a float32 factor of any size.

    bfloat16 rows take the factor in two bfloat16 parts, 16 significant bits together. Two float16 parts could overflow,
    so float16 rows take it as float32 ones do, in three tf32 products.
    """
    if b_rows.dtype == tl.bfloat16:
        b_high = b_float.to(tl.bfloat16)  # rounded: cut off, as in the solve, it fails the state's gate by one bit
        b_low = (b_float - b_high.to(tl.float32)).to(tl.bfloat16)
        b_product = tl.dot(b_rows, b_low, tl.dot(b_rows, b_high))
    else:
        b_product = tl.dot(b_rows.to(tl.float32), b_float, input_precision="tf32x3")
    return b_product


@triton.jit(do_not_specialize=["n_new", "n_key_units"])
def delta_chunk_kernel(
    p_query,
    p_key,
    p_log_decay,
    p_beta,
    p_work,
    n_new,
    n_key_units,
    scale,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH_UNIT: tl.constexpr,
):
    """Make T = (I + tril(diag(β)(Γ ∘ KKᵀ), −1))⁻¹ diag(β) and scale · (Γ ∘ QKᵀ); program (chunk, head).

    Args:
        p_query, p_key: ``(B, H, n_new, key width)``.
        p_log_decay, p_beta: ``(B, H, n_new)``; the first is float32.
        p_work: For each head and chunk, ``(2, BLOCK_M, BLOCK_M)`` float32: T and the queries' weights.
        n_key_units: Key width / WIDTH_UNIT, so that the compiler knows what the width is a multiple of.
        scale: What outputs are multiplied by.
    """
    width = n_key_units * WIDTH_UNIT
    i_chunk = tl.program_id(0)
    i_head = tl.program_id(1).to(tl.int64)
    i_first = i_chunk * BLOCK_M
    o_m = tl.arange(0, BLOCK_M)
    m_rows = i_first + o_m < n_new
    o_rows = (i_head * n_new + i_first) * width
    o_gates = i_head * n_new + i_first
    b_k = load_rows(p_key + o_rows, o_m, m_rows, width, BLOCK_D)
    b_q = load_rows(p_query + o_rows, o_m, m_rows, width, BLOCK_D)
    b_g = load_logs(p_log_decay + o_gates, o_m, m_rows)
    b_beta = tl.load(p_beta + o_gates + o_m, mask=m_rows, other=0.0).to(tl.float32)

    # log γ_i/γ_j as sums over the tokens between, never as differences of sums: those cancel where α is small.
    m_below = o_m[:, None] > o_m[None, :]
    b_between = tl.cumsum(tl.where(m_below, b_g[:, None], 0.0), axis=0)
    b_gamma = tl.where(o_m[:, None] >= o_m[None, :], tl.exp(b_between), 0.0)
    b_scores = tl.dot(b_k, tl.trans(b_k), input_precision="tf32x3") * b_gamma
    b_system = tl.where(m_below, b_scores * b_beta[:, None], 0.0)
    b_solve = invert_unit_lower(b_system, BLOCK_M, "tf32x3") * b_beta[None, :]
    b_attended = tl.dot(b_q, tl.trans(b_k), input_precision="tf32x3") * b_gamma * scale

    p_tiles = p_work + (i_head * tl.num_programs(0) + i_chunk) * (2 * BLOCK_M * BLOCK_M)
    o_tile = o_m[:, None] * BLOCK_M + o_m[None, :]
    tl.store(p_tiles + o_tile, b_solve)
    tl.store(p_tiles + BLOCK_M * BLOCK_M + o_tile, b_attended)


@triton.jit(do_not_specialize=["n_new", "n_key_units", "n_value_units"])
def delta_state_kernel(
    p_query,
    p_key,
    p_value,
    p_log_decay,
    p_state,
    p_work,
    p_output,
    p_new_state,
    n_new,
    n_key_units,
    n_value_units,
    scale,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH_UNIT: tl.constexpr,
):
    """Go through the chunks with BLOCK_N columns of a head's state in registers; program (head, columns).

    R = T (V − (γ ∘ K) S), outputs scale · (γ ∘ Q) S + A R, S ← γ_C S + ((γ_C/γ) ∘ K)ᵀ R; T and A are in the workspace.

    Args:
        p_value, p_output: ``(B, H, n_new, value width)``.
        p_state, p_new_state: ``(B, H, key width, value width)``, float32.
        n_value_units: Value width / WIDTH_UNIT.
        p_query, p_key, p_log_decay, p_work, n_key_units, scale: As in the kernel before.
    """
    width = n_key_units * WIDTH_UNIT
    value_width = n_value_units * WIDTH_UNIT
    i_head = tl.program_id(0).to(tl.int64)
    o_m = tl.arange(0, BLOCK_M)
    o_d = tl.arange(0, BLOCK_D)
    o_e = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_e = o_e < value_width
    o_tile = o_m[:, None] * BLOCK_M + o_m[None, :]
    o_state = i_head * width * value_width + o_d[:, None] * value_width + o_e[None, :]
    m_state = (o_d < width)[:, None] & m_e[None, :]
    n_chunks = tl.cdiv(n_new, BLOCK_M)

    b_s = tl.load(p_state + o_state, mask=m_state, other=0.0)
    for i_chunk in range(n_chunks):
        i_first = i_chunk * BLOCK_M
        m_rows = i_first + o_m < n_new
        o_rows = i_head * n_new + i_first
        b_k = load_rows(p_key + o_rows * width, o_m, m_rows, width, BLOCK_D)
        b_g = load_logs(p_log_decay + o_rows, o_m, m_rows)
        b_g_next = load_logs(p_log_decay + o_rows + 1, o_m, (o_m + 1 < BLOCK_M) & (i_first + o_m + 1 < n_new))
        b_from_start = tl.exp(tl.cumsum(b_g, axis=0))
        b_to_end = tl.exp(tl.cumsum(b_g_next, axis=0, reverse=True))
        decay = tl.exp(tl.sum(b_g, axis=0))
        m_tile = m_rows[:, None] & m_e[None, :]
        o_values = o_rows * value_width + o_m[:, None] * value_width + o_e[None, :]
        b_v = tl.load(p_value + o_values, mask=m_tile, other=0.0).to(tl.float32)
        p_tiles = p_work + (i_head * n_chunks + i_chunk) * (2 * BLOCK_M * BLOCK_M)

        b_missing = b_v - times(b_k, b_s) * b_from_start[:, None]
        b_r = tl.dot(tl.load(p_tiles + o_tile), b_missing, input_precision="tf32x3")
        b_q = load_rows(p_query + o_rows * width, o_m, m_rows, width, BLOCK_D)
        b_o = times(b_q, b_s) * (b_from_start * scale)[:, None]
        b_o += tl.dot(tl.load(p_tiles + BLOCK_M * BLOCK_M + o_tile), b_r, input_precision="tf32x3")
        tl.store(p_output + o_values, b_o.to(p_output.dtype.element_ty), mask=m_tile)
        b_s = b_s * decay + times(tl.trans(b_k), b_r * b_to_end[:, None])
    tl.store(p_new_state + o_state, b_s, mask=m_state)


@triton.jit(do_not_specialize=["n_key_units", "n_value_units"])
def delta_decode_kernel(
    p_query,
    p_key,
    p_value,
    p_log_decay,
    p_beta,
    p_state,
    p_output,
    p_new_state,
    n_key_units,
    n_value_units,
    scale,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH_UNIT: tl.constexpr,
):
    """Do one token's step on BLOCK_N columns of a head's state, in float32; program (head, columns).

    Args:
        p_query, p_key, p_value, p_log_decay, p_beta, p_output: As in the kernels before, of one token.
        p_state, p_new_state, n_key_units, n_value_units, scale: As in the kernels before.
    """
    width = n_key_units * WIDTH_UNIT
    value_width = n_value_units * WIDTH_UNIT
    i_head = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, BLOCK_D)
    o_e = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_d = o_d < width
    m_e = o_e < value_width
    o_state = i_head * width * value_width + o_d[:, None] * value_width + o_e[None, :]
    m_state = m_d[:, None] & m_e[None, :]
    b_k = tl.load(p_key + i_head * width + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_q = tl.load(p_query + i_head * width + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_v = tl.load(p_value + i_head * value_width + o_e, mask=m_e, other=0.0).to(tl.float32)
    beta = tl.load(p_beta + i_head).to(tl.float32)
    decay = tl.exp(tl.load(p_log_decay + i_head))
    b_s = tl.load(p_state + o_state, mask=m_state, other=0.0) * decay
    b_r = beta * (b_v - tl.sum(b_k[:, None] * b_s, axis=0))
    b_s += b_k[:, None] * b_r[None, :]
    b_o = scale * tl.sum(b_q[:, None] * b_s, axis=0)
    tl.store(p_output + i_head * value_width + o_e, b_o.to(p_output.dtype.element_ty), mask=m_e)
    tl.store(p_new_state + o_state, b_s, mask=m_state)
