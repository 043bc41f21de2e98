"""From sizes to launches of the preconditioner's kernel, with no GPU and no Triton; ``tensorrt.cpp`` does the same."""

from __future__ import annotations

from pathlib import Path

from lucid_deploy.plugins.shared.plan import (
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
    """Plan the solve for K and V ``(batch, heads, new, width)`` after ``past`` tokens.

    Args:
        batch: Sequences.
        heads: Key/value heads.
        new: New tokens, at least 1.
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
    check_sizes(batch=batch, heads=heads, new=new)
    padded, unit = padded_width(width), width_unit(width, dtype)
    tuned = tuned or choice(TUNED, arch, dtype, padded)
    step = Step(
        kernel="precondition_kernel",
        dtype=dtype,
        grid=(-(-new // tuned.block_m) * batch * heads, 1, 1),
        pointers=(*PRECONDITION.input_names, *PRECONDITION.output_names, "workspace"),
        scalars={
            "n_new": new,
            "n_past": past,
            "n_heads": heads,
            "n_batch_heads": batch * heads,
            "width_units": width // unit,
            "epsilon": epsilon,
            **score_scalars(width),
            "diagonal": diagonal,
        },
        constants={"BLOCK_M": tuned.block_m, "BLOCK_N": tuned.block_n, "BLOCK_D": padded, "WIDTH_UNIT": unit},
        num_warps=tuned.num_warps,
        num_stages=tuned.num_stages,
    )
    workspace = (1 + batch * heads) * INT32_BYTES
    return Plan((step,), PRECONDITION.output_names, workspace_bytes=workspace, zeroed_bytes=workspace)


def variants(arch: int) -> list[Variant]:
    """Return what is compiled ahead of time for one architecture."""
    found = []
    for dtype in FLOATS:
        for padded in PADDED_WIDTHS:
            tuned = choice(TUNED, arch, dtype, padded)
            blocks = (("BLOCK_M", tuned.block_m), ("BLOCK_N", tuned.block_n), ("BLOCK_D", padded))
            for unit in compiled_units(dtype):
                constants = (*blocks, ("WIDTH_UNIT", unit))
                found.append(Variant("precondition_kernel", dtype, constants, tuned.num_warps, tuned.num_stages))
    return found
