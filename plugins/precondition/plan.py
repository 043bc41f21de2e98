"""Launch plan of the preconditioner's kernels, from tensor sizes; ``tensorrt.cpp`` computes the same in C++."""

from __future__ import annotations

from pathlib import Path

from lucid_deploy.plugins.shared.plan import (
    FLOAT32_BYTES,
    INT32_BYTES,
    PADDED_WIDTHS,
    Choice,
    Plan,
    Step,
    Variant,
    check_sizes,
    choice,
    compiled_units,
    padded_width,
    score_scalars,
    width_unit,
)
from lucid_deploy.plugins.table import FLOATS, PRECONDITION

TUNED = Path(__file__).with_name("tuned.json")
NORM_TOKENS = 64  # tokens per program of the kernel that computes inverse norms
# TensorRT asks for the workspace size before the device is known, so the workspace must suffice for all of these sizes.
SMALLEST_ROWS = 16  # fewest rows solved at once
INT8_TILES = (16, 32, 64)  # tokens of an int8 tile
INT8_TYPE = "bfloat16"  # type of the tensors for which E may be split into bfloat16 and int8
INT8_ALIGNMENT = 256  # alignment of the tiles in the workspace, bytes
NORM_WARPS = 4
NORM_UNIT = 4  # the key kernels are memory-bound, so one variant serves all widths that are multiples of 4


def plan_precondition(
    batch: int,
    heads: int,
    new: int,
    past: int,
    width: int,
    dtype: str,
    epsilon: float,
    arch: int,
    tuned: Choice | None = None,
    diagonal: float = 0.0,
) -> Plan:
    """Plan the launches that compute Y of new tokens from their K and V, and from K and Y of ``past`` cached tokens.

    Args:
        batch, heads, new, width: Sizes of K and V, ``(batch, heads, new, width)``; head widths are 16 to 256.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        arch: Compute capability, 90 for 9.0.
        tuned: Constants to use instead of those in ``tuned.json``.
        diagonal: 0 for L_ii = 1, 1 for the training diagonal.

    Raises:
        ValueError: The kernels do not support the sizes, the device or the constants.
    """
    check_sizes(batch=batch, heads=heads, new=new)
    padded, unit = padded_width(width), width_unit(width, dtype)
    tuned = tuned or choice(TUNED, arch, dtype, padded)
    if tuned.block_m < SMALLEST_ROWS or tuned.block_m % tuned.block_n:
        raise ValueError(
            f"block rows must have at least {SMALLEST_ROWS} tokens, for which the workspace is sized, and be whole "
            f"tiles, not {tuned.block_m} tokens and tiles of {tuned.block_n}"
        )
    if tuned.int8 and (dtype != INT8_TYPE or tuned.block_n not in INT8_TILES or tuned.block_m != tuned.block_n):
        raise ValueError(
            f"int8 needs tensors of {INT8_TYPE} and square tiles of {INT8_TILES} tokens, for which the workspace is "
            f"sized, not {dtype} and {tuned.block_m} × {tuned.block_n}"
        )
    if dtype == "float32" and NORM_TOKENS % tuned.block_n:
        raise ValueError(f"float32 needs tiles that divide {NORM_TOKENS} past tokens, not of {tuned.block_n}")
    scalars = {"n_new": new, "n_past": past, "n_batch_heads": batch * heads}
    solve = Step(
        kernel="precondition_kernel",
        dtype=dtype,
        grid=(-(-new // tuned.block_m) * batch * heads, 1, 1),
        pointers=("K", "V", "K_past", "Y_past", "Y", "workspace"),
        scalars={
            **scalars,
            "width_units": width // unit,
            "epsilon": epsilon,
            **score_scalars(width),
            "diagonal": diagonal,
        },
        constants=_constants(tuned, padded, unit),
        num_warps=tuned.num_warps,
        num_stages=tuned.num_stages,
    )
    keys = _keys_step(batch, heads, new, past, width, dtype, epsilon, tuned)
    counters = (1 + batch * heads) * INT32_BYTES
    workspace = counters + batch * heads * (past + new) * FLOAT32_BYTES
    if dtype == "float32":  # powers of two for rows of Y; the smallest blocks need the most
        powers = -(-past // NORM_TOKENS) + -(-new // SMALLEST_ROWS)
        workspace += batch * heads * powers * FLOAT32_BYTES
    if dtype == INT8_TYPE:
        tiles = -(-counters // INT8_ALIGNMENT) * INT8_ALIGNMENT + batch * heads * _most_tile_bytes(new, past, padded)
        workspace = max(workspace, tiles)
    return Plan((keys, solve), PRECONDITION.output_names, workspace_bytes=workspace, zeroed_bytes=counters)


def _keys_step(
    batch: int, heads: int, new: int, past: int, width: int, dtype: str, epsilon: float, tuned: Choice
) -> Step:
    """Return the launch before the solve, which writes the inverse norms of keys.

    For past Y it also writes powers of two to scale it by (float32), or its copy in int8 tiles (``tuned.int8``).
    """
    unit, padded = min(width_unit(width, dtype), NORM_UNIT), padded_width(width)
    tokens = tuned.block_n if tuned.int8 else NORM_TOKENS
    past_rows = ("Y_past",) if tuned.int8 or dtype == "float32" else ()
    tiles = -(-past // tokens) + -(-new // tokens) if tuned.int8 else -(-(past + new) // tokens)
    return Step(
        kernel=_keys_kernel(tuned),
        dtype=dtype,
        grid=(batch * heads, tiles, 1),
        pointers=("K", "K_past", *past_rows, "mask", "workspace"),
        scalars={
            "n_new": new,
            "n_past": past,
            "n_heads": heads,
            "n_batch_heads": batch * heads,
            "width_units": width // unit,
            "epsilon": epsilon,
        },
        constants={"BLOCK_N": tokens, "BLOCK_D": padded, "WIDTH_UNIT": unit},
        num_warps=NORM_WARPS,
        num_stages=1,
    )


def _keys_kernel(tuned: Choice) -> str:
    return "key_tiles_kernel" if tuned.int8 else "key_norms_kernel"


def _most_tile_bytes(new: int, past: int, padded: int) -> int:
    """Return the bytes of a head's int8 tiles, scales and norms, for the tile size that needs the most."""
    return max(
        (-(-past // tokens) + -(-new // tokens)) * (tokens * FLOAT32_BYTES + padded * FLOAT32_BYTES + padded * tokens)
        for tokens in INT8_TILES
    )


def _constants(tuned: Choice, padded: int, unit: int) -> dict[str, int]:
    blocks = {"BLOCK_M": tuned.block_m, "BLOCK_N": tuned.block_n, "BLOCK_D": padded}
    return {**blocks, "WIDTH_UNIT": unit, "CHUNK_D": tuned.chunk or padded, **({"INT8": 1} if tuned.int8 else {})}


def variants(arch: int) -> list[Variant]:
    """Return the kernel variants to compile ahead of time for one architecture."""
    found = []
    for dtype in FLOATS:
        for padded in PADDED_WIDTHS:
            tuned = choice(TUNED, arch, dtype, padded)
            found += solve_variants(dtype, padded, tuned)
            tokens = tuned.block_n if tuned.int8 else NORM_TOKENS
            constants = (("BLOCK_N", tokens), ("BLOCK_D", padded), ("WIDTH_UNIT", NORM_UNIT))
            found.append(Variant(_keys_kernel(tuned), dtype, constants, NORM_WARPS, 1))
    return found


def solve_variants(dtype: str, padded: int, tuned: Choice) -> list[Variant]:
    """Return the variants of the solve with the constants ``tuned``: one for each width unit, the largest first."""
    return [
        Variant(
            "precondition_kernel",
            dtype,
            tuple(_constants(tuned, padded, unit).items()),
            tuned.num_warps,
            tuned.num_stages,
        )
        for unit in compiled_units(dtype)
    ]
