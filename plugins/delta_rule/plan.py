"""Launch plan of the delta rule's Triton kernels, from tensor sizes; ``tensorrt.cpp`` computes the same in C++."""

from __future__ import annotations

from pathlib import Path

from lucid_deploy.plugins.shared.plan import (
    FLOAT32_BYTES,
    PADDED_WIDTHS,
    Choice,
    Plan,
    Step,
    Variant,
    check_sizes,
    choice,
    padded_width,
)
from lucid_deploy.plugins.table import DELTA_RULE, FLOATS

TUNED = Path(__file__).with_name("tuned.json")
COMPILED_UNIT = 4  # variants compiled ahead of time support widths that are multiples of it
LARGEST_CHUNK = 32  # sizes the workspace: TensorRT asks for its size before the device, and so the chunk, is known
DECODE_COLUMNS = 32  # columns of the state per program: 128 bytes, a cache line
DECODE_WARPS = 4
ROWS_OF_A_WARP = 16  # rows of one tensor core instruction; with more warps, several would compute the same rows
FIXED = ("log_decay", "state", "new_state")  # tensors that are float32 whatever the dtype of the others


def plan_delta_rule(
    batch: int,
    heads: int,
    new: int,
    key_width: int,
    value_width: int,
    dtype: str,
    scale: float,
    arch: int,
    tuned: Choice | None = None,
) -> Plan:
    """Plan the delta rule for ``new`` tokens: one launch for one token, two for more.

    Args:
        key_width: 16 to 256.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        scale: Factor of the outputs.
        arch: Compute capability, 90 for 9.0.
        tuned: Constants in place of those in ``tuned.json``: tokens per chunk, state columns per program, warps of the
            state kernel, pipeline stages, and key columns multiplied at once (0: all).

    Raises:
        ValueError: A size is below 1, or the kernels do not support the key width or the device.
    """
    check_sizes(batch=batch, heads=heads, new=new, value_width=value_width)
    padded = padded_width(key_width)
    unit = COMPILED_UNIT if key_width % COMPILED_UNIT == 0 and value_width % COMPILED_UNIT == 0 else 1
    tuned = tuned or choice(TUNED, arch, dtype, padded)
    inputs, outputs = DELTA_RULE.input_names, DELTA_RULE.output_names
    widths = {"n_key_units": key_width // unit, "n_value_units": value_width // unit}
    if new == 1:
        grid = (batch * heads, -(-value_width // DECODE_COLUMNS), 1)
        constants = {"BLOCK_N": DECODE_COLUMNS, "BLOCK_D": padded, "WIDTH_UNIT": unit}
        scalars = {**widths, "scale": scale}
        step = Step("delta_decode_kernel", dtype, grid, (*inputs, *outputs), scalars, constants, DECODE_WARPS, 1)
        return Plan((step,), outputs, workspace_bytes=0, zeroed_bytes=0)
    chunks = -(-new // tuned.block_m)
    blocks = {"BLOCK_M": tuned.block_m, "BLOCK_N": tuned.block_n}
    of_width = {"BLOCK_D": padded, "WIDTH_UNIT": unit, "CHUNK_D": tuned.chunk or padded}
    chunk = Step(
        kernel="delta_chunk_kernel",
        dtype=dtype,
        grid=(chunks, batch * heads, 1),
        pointers=("query", "key", "log_decay", "beta", "workspace"),
        scalars={"n_new": new, "n_key_units": widths["n_key_units"], "scale": scale},
        constants={"BLOCK_M": tuned.block_m, **of_width},
        num_warps=chunk_warps(tuned),
        num_stages=tuned.num_stages,
    )
    state = Step(
        kernel="delta_state_kernel",
        dtype=dtype,
        grid=(batch * heads, -(-value_width // tuned.block_n), 1),
        pointers=("query", "key", "value", "state", "workspace", *outputs),
        scalars={"n_new": new, **widths, "scale": scale},
        constants={**blocks, **of_width},
        num_warps=tuned.num_warps,
        num_stages=tuned.num_stages,
    )
    largest = max(tuned.block_m, LARGEST_CHUNK)
    workspace = batch * heads * -(-new // largest) * 2 * largest * (largest + 1) * FLOAT32_BYTES
    return Plan((chunk, state), outputs, workspace_bytes=workspace, zeroed_bytes=0)


def chunk_warps(tuned: Choice) -> int:
    """Return the warps per program of ``delta_chunk_kernel``: one for every 16 tokens of a chunk."""
    return tuned.block_m // ROWS_OF_A_WARP


def chunk_variants(dtype: str, padded: int, tuned: Choice) -> list[Variant]:
    """Return the variants for several new tokens: the state kernel's, then the chunk kernel's."""
    width = (("BLOCK_D", padded), ("WIDTH_UNIT", COMPILED_UNIT), ("CHUNK_D", tuned.chunk or padded))
    chunk = (("BLOCK_M", tuned.block_m), *width)
    state = (("BLOCK_M", tuned.block_m), ("BLOCK_N", tuned.block_n), *width)
    return [
        Variant("delta_state_kernel", dtype, state, tuned.num_warps, tuned.num_stages),
        Variant("delta_chunk_kernel", dtype, chunk, chunk_warps(tuned), tuned.num_stages),
    ]


def variants(arch: int) -> list[Variant]:
    """Return the kernel variants to compile ahead of time for one architecture."""
    found = []
    for dtype in FLOATS:
        for padded in PADDED_WIDTHS:
            one = (("BLOCK_N", DECODE_COLUMNS), ("BLOCK_D", padded), ("WIDTH_UNIT", COMPILED_UNIT))
            found += chunk_variants(dtype, padded, choice(TUNED, arch, dtype, padded))
            found.append(Variant("delta_decode_kernel", dtype, one, DECODE_WARPS, 1))
    return found
