"""From sizes to launches of decode attention's kernels, with no GPU and no Triton; ``tensorrt.cpp`` does the same."""

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
    compiled_units,
    padded_width,
    score_scalars,
    width_unit,
)
from lucid_deploy.plugins.table import DECODE_ATTENTION, FLOATS

TUNED = Path(__file__).with_name("tuned.json")
QUERY_ROWS = (16, 32)  # rows of a tile: query heads of one key/value head, and the new key
TARGET_PROGRAMS = 256  # about two programs for each multiprocessor of a large GPU
MAX_SPLITS = 128  # bounds the workspace and the combine step
COMBINE_SPLITS = 16  # splits that the combine step loads at once
COMBINE_WARPS = 4
COMBINE_UNIT = 4  # its loads are few; one compiled form serves all widths that are multiples of 4


def plan_decode_attention(
    batch: int,
    heads: int,
    groups: int,
    past: int,
    width: int,
    dtype: str,
    epsilon: float,
    arch: int,
    tuned: Choice | None = None,
    diagonal: float = 0.0,
) -> Plan:
    """Plan decode attention for Q ``(batch, heads · groups, 1, width)`` over ``past`` cached rows.

    Args:
        batch: Sequences.
        heads: Key/value heads.
        groups: Query heads per key/value head.
        past: Cached tokens, at least 0.
        width: Head width, 16 to 256.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        epsilon: Added to the mean square of a key.
        arch: Compute capability, 90 for 9.0.
        tuned: Constants to use instead of the tuned ones.
        diagonal: 0: L_ii is 1; 1: it is training's.

    Raises:
        ValueError: Sizes or a device outside what the kernels support.
    """
    check_sizes(batch=batch, heads=heads, groups=groups)
    padded, unit, rows = padded_width(width), width_unit(width, dtype), query_rows(groups)
    chunks = -(-groups // (rows - 1))
    tuned = tuned or choice(TUNED, arch, dtype, padded)
    splits = max(1, min(-(-past // tuned.block_n), MAX_SPLITS, TARGET_PROGRAMS // (batch * heads)))
    sizes = {"n_past": past, "n_heads": heads, "n_groups": groups, "n_splits": splits}
    combine_unit = min(unit, COMBINE_UNIT)
    floats = {"epsilon": epsilon, **score_scalars(width), "diagonal": diagonal}
    split = Step(
        kernel="decode_split_kernel",
        dtype=dtype,
        grid=(batch * heads, splits, chunks),
        pointers=("Q", "K_new", "K", "Y", "mask", "workspace"),
        scalars={**sizes, "width_units": width // unit, **floats},
        constants={"ROWS": rows, "BLOCK_N": tuned.block_n, "BLOCK_D": padded, "WIDTH_UNIT": unit},
        num_warps=tuned.num_warps,
        num_stages=tuned.num_stages,
    )
    combine = Step(
        kernel="decode_combine_kernel",
        dtype=dtype,
        grid=(batch * heads, groups, 1),
        pointers=("Q", "K_new", "V_new", "mask", "workspace", "O", "Y_new"),
        scalars={**sizes, "width_units": width // combine_unit, **floats},
        constants={"BLOCK_S": COMBINE_SPLITS, "BLOCK_D": padded, "WIDTH_UNIT": combine_unit},
        num_warps=COMBINE_WARPS,
        num_stages=1,
    )
    # Enough for every smaller batch too: fewer heads take more splits, up to TARGET_PROGRAMS programs in all.
    workspace = max(batch * heads, TARGET_PROGRAMS) * (groups + 1) * (width + 2) * FLOAT32_BYTES
    return Plan((split, combine), DECODE_ATTENTION.output_names, workspace_bytes=workspace, zeroed_bytes=0)


def query_rows(groups: int) -> int:
    """Return the rows of a tile for ``groups`` query heads per key/value head; more than fit take several."""
    return next((rows for rows in QUERY_ROWS if rows > groups), QUERY_ROWS[-1])


def variants(arch: int) -> list[Variant]:
    """Return what is compiled ahead of time for one architecture."""
    found = []
    for dtype in FLOATS:
        for padded in PADDED_WIDTHS:
            tuned = choice(TUNED, arch, dtype, padded)
            for unit in compiled_units(dtype):
                for rows in QUERY_ROWS:
                    sizes = {"ROWS": rows, "BLOCK_N": tuned.block_n, "BLOCK_D": padded, "WIDTH_UNIT": unit}
                    constants = tuple(sizes.items())
                    found.append(Variant("decode_split_kernel", dtype, constants, tuned.num_warps, tuned.num_stages))
            sizes = {"BLOCK_S": COMBINE_SPLITS, "BLOCK_D": padded, "WIDTH_UNIT": COMBINE_UNIT}
            found.append(Variant("decode_combine_kernel", dtype, tuple(sizes.items()), COMBINE_WARPS, 1))
    return found
