"""Launch plan of decode attention's kernels, from tensor sizes; ``tensorrt.cpp`` computes the same in C++.

The split kernel reads the cache. On some devices its variants with at most 16 rows may work in parts: each warp attends
to its own tokens of every tile (``parts.py``). The combine kernel combines the splits.
"""

from __future__ import annotations

from dataclasses import replace
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
from lucid_deploy.plugins.table import DECODE_ATTENTION, DECODE_ATTENTION_FLOAT8, FLOATS

TUNED = Path(__file__).with_name("tuned.json")
QUERY_ROWS = (16, 32, 64)  # rows of a tile: queries of one key/value head, and its new keys
FEW_ROWS = 8  # rows of a tile for heads of up to 8 rows, with parts and unpadded widths: half a tensor core's product
# Largest rows × padded width, in float32 and the half types: larger tiles spill, or are slower than two half as large.
FLOAT32_NUMBERS, HALF_NUMBERS = 4096, 8192
WIDE_TILE = (32, 4)  # with 32 rows or more: most cached tokens of a tile, and warps; avoids spills in the loop
NARROW_TILE = (64, 2)  # the same with 32 rows and padded width 32, where four warps would compute products twice
WIDE_STAGES = 2  # most pipeline stages with 32 rows or more of float32
# Major compute capabilities on which four warps compute a 64-row product together, with keys and Y in shared memory.
# There a head with more than 16 rows takes a tile of 64, if that has at most twice FLOAT32_NUMBERS or HALF_NUMBERS.
# Such a tile covers GROUP_TOKENS cached tokens if their keys are at most FLOAT32_KEYS or HALF_KEYS numbers, else
# WIDE_TILE's 32: with more, registers spill on 9.0.
WARP_GROUPS = (9, 10)
GROUP_TOKENS = 64
FLOAT32_KEYS, HALF_KEYS = 2048, 8192
AMPERE_KEYS = 4096  # used on 8.0 instead of HALF_KEYS
CHUNK = 32  # columns of keys and of Y that are multiplied at once
WIDE_CHUNK = 64  # like CHUNK, for wide heads with more than 16 rows, or with parts in a half type
MOST_NEW = 16  # most new tokens: the rows of the tile in which their triangular system is solved
TARGET_PROGRAMS = 256  # about two programs for each multiprocessor of a large GPU
MAX_SPLITS = 128  # bounds the workspace and the combine step
COMBINE_SPLITS = 16  # splits that the combine step of one new token loads at once
COMBINE_WARPS = 4
COMBINE_UNIT = 4  # the combine step loads little, so one variant serves all widths that are multiples of 4
FLOAT8_KERNEL = "decode_split_float8_kernel"  # the split kernel, compiled for a cache of E4M3 with scales
FLOAT8_ARCH = 89  # the first compute capability that converts E4M3
# Major compute capabilities whose tensor cores add the squares of keys, in the half types and E4M3 with up to 16 rows.
# On 8.0 they do so in the half types with any number of rows; elsewhere tensor cores are the busiest unit.
ADDS_SQUARES = (9, 10)
# Major compute capabilities that use parts with up to 16 rows, and the largest padded width. On 9.0, float16 at width
# 128 would spill, and without parts it already computes in half of the time that memory needs.
PARTS_WIDTHS = {9: 64, 10: 128}
FLOAT32_PARTS_WIDTH = 64  # the largest width for float32: wider queries do not fit into registers
SHARED_PARTS_WIDTH = 128  # an exception on 10.x: heads of this width have the queries' low parts in shared memory
FLOAT8_PARTS_WIDTH = 128  # the largest width for an E4M3 cache, on all of these devices
FEW_FLOAT32_WIDTH = 128  # the largest width for float32 with FEW_ROWS: high and low parts fill one product's rows
# Columns of float32 multiplied at once in parts, whose squares are summed in registers. More would spill, except with
# FEW_ROWS of wide heads.
PARTS_CHUNK = 16
PAIRS_ARCH = 100  # the first compute capability whose float32 instructions process two numbers
PART_TOKENS = 16  # fewest tokens of a part, LEAST_TOKENS in parts.py
NARROW_TOKENS = 128  # most tokens of a tile with parts if loads are narrow: more would spill
PADDED_KEYS = 4096  # most numbers of K in a float32 tile with parts if the width is padded: more would spill
GEFORCE = 86  # the first compute capability of Ampere with GeForce's tensor cores
FAST_BFLOAT16 = 100  # the first compute capability that converts E4M3 to bfloat16 at the rate of other conversions
# With up to 16 rows: fewest warps for an E4M3 cache and for narrow loads, and the warps of float32 parts at padded
# widths. With two warps, converted numbers would spill, as would addresses: narrow loads need twice as many.
CAREFUL_WARPS = 4
# Tokens of an E4M3 tile with 16 rows: at most this many without parts. With parts, at least this many if the head width
# is its padded width; for other widths padded to 128 such a tile would spill.
FLOAT8_TOKENS = 128
FLOAT8_FEW_TOKENS = 256  # most tokens with FEW_ROWS
FLOAT8_UNIT = 8  # an E4M3 cache needs head widths that are multiples of 8; others would enlarge the library


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
    new: int = 1,
    float8: bool = False,
) -> Plan:
    """Plan decode attention for Q ``(batch, heads · groups, new, width)`` over ``past`` cached rows.

    Args:
        groups: Query heads per key/value head.
        width: Head width, 16 to 256.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        arch: Compute capability, 90 for 9.0.
        tuned: Constants to use as they are, instead of those in ``tuned.json``, which are adapted to the sizes.
        diagonal: 0 for L_ii = 1, 1 for the training diagonal.
        new: New tokens, 1 to 16.
        float8: Whether the cache is E4M3 with a scale for each row.

    Raises:
        ValueError: The kernels do not support the sizes or the device.
    """
    check_sizes(batch=batch, heads=heads, groups=groups, new=new)
    if new > MOST_NEW:
        raise ValueError(f"up to {MOST_NEW} new tokens are supported, not {new}")
    if float8 and arch < FLOAT8_ARCH:
        raise ValueError(f"compute capability {arch / 10} has no E4M3: an E4M3 cache needs {FLOAT8_ARCH / 10} or newer")
    if float8 and width % FLOAT8_UNIT:
        raise ValueError(f"head width {width} is not supported: an E4M3 cache needs a multiple of {FLOAT8_UNIT}")
    padded, head_rows = padded_width(width), (groups + 1) * new
    rows = query_rows(head_rows, dtype, padded, arch)
    unit = cache_unit(width, dtype, rows)
    if head_rows <= FEW_ROWS and unit == padded and _has_parts(arch, dtype, padded, FEW_ROWS, unit, float8):
        rows = FEW_ROWS
    tuned = tuned or _adapted(choice(TUNED, arch, dtype, padded), arch, dtype, padded, rows, unit, float8)
    splits = max(1, min(-(-past // tuned.block_n), MAX_SPLITS, TARGET_PROGRAMS // (batch * heads)))
    sizes = {"n_past": past, "n_heads": heads, "n_groups": groups}
    with_new = {**sizes, "n_new": new, "n_splits": splits}
    combine_unit = min(width_unit(width, dtype), COMBINE_UNIT)
    floats = {"epsilon": epsilon, **score_scalars(width), "diagonal": diagonal}
    split = Step(
        kernel=_split_kernel(float8),
        dtype=dtype,
        grid=(batch * heads, splits, -(-head_rows // rows)),
        pointers=("Q", "K_new", "K", "Y", *(("K_scale", "Y_scale") if float8 else ()), "mask", "workspace"),
        scalars={**with_new, "width_units": width // unit, **floats},
        constants=_constants(arch, dtype, padded, rows, tuned, unit, float8),
        num_warps=tuned.num_warps,
        num_stages=tuned.num_stages,
    )
    one = new == 1
    combine_sizes = {**sizes, "n_splits": splits} if one else with_new
    block = {"BLOCK_S": COMBINE_SPLITS} if one else {"BLOCK_M": MOST_NEW}
    combine = Step(
        kernel="decode_combine_kernel" if one else "verify_combine_kernel",
        dtype=dtype,
        grid=(batch * heads, groups, 1),
        pointers=("Q", "K_new", "V_new", "mask", "workspace", "O", "Y_new"),
        scalars={**combine_sizes, "width_units": width // combine_unit, **floats},
        constants={**block, "BLOCK_D": padded, "WIDTH_UNIT": combine_unit},
        num_warps=COMBINE_WARPS,
        num_stages=1,
    )
    # Enough for every smaller batch too, which has more splits, up to TARGET_PROGRAMS programs in all.
    workspace = max(batch * heads, TARGET_PROGRAMS) * head_rows * (width + 2) * FLOAT32_BYTES
    operator = DECODE_ATTENTION_FLOAT8 if float8 else DECODE_ATTENTION
    return Plan((split, combine), operator.output_names, workspace_bytes=workspace, zeroed_bytes=0)


def row_counts(dtype: str, padded: int, arch: int) -> tuple[int, ...]:
    """Return the numbers of rows in a tile that the split kernel is compiled for, except FEW_ROWS."""
    most = FLOAT32_NUMBERS if dtype == "float32" else HALF_NUMBERS
    if _has_warp_groups(arch):
        return tuple(rows for rows in (QUERY_ROWS[0], QUERY_ROWS[-1]) if rows * padded <= 2 * most)
    return tuple(rows for rows in QUERY_ROWS if rows * padded <= most)


def query_rows(head_rows: int, dtype: str, padded: int, arch: int) -> int:
    """Return the rows per tile for a key/value head with ``head_rows`` rows, which may need several tiles."""
    counts = row_counts(dtype, padded, arch)
    return next((rows for rows in counts if rows >= head_rows), counts[-1])


def cache_unit(width: int, dtype: str, rows: int) -> int:
    """Return the divisor of ``width`` that the split kernel is compiled for.

    With 16 rows or fewer, a width that needs no padding is its own divisor: the compiler then knows the stride of the
    cache's rows, and columns need no mask.
    """
    return width if rows <= QUERY_ROWS[0] and width in PADDED_WIDTHS else width_unit(width, dtype)


def _has_warp_groups(arch: int) -> bool:
    return arch // 10 in WARP_GROUPS


def parts_width(arch: int, dtype: str) -> int:
    """Return the largest padded width with parts for 16 rows, 0 if none has; :func:`_has_parts` adds exceptions."""
    most = PARTS_WIDTHS.get(arch // 10, 0)
    return min(most, FLOAT32_PARTS_WIDTH) if dtype == "float32" else most


def _has_parts(arch: int, dtype: str, padded: int, rows: int, unit: int, float8: bool) -> bool:
    """Return whether the variant uses parts: each warp attends to its own tokens of every tile."""
    most = parts_width(arch, dtype)
    if float8 and most:
        most = FLOAT8_PARTS_WIDTH
    if dtype == "float32" and rows <= FEW_ROWS and most:
        most = FEW_FLOAT32_WIDTH
    is_shared = dtype == "float32" and _takes_pairs(arch) and unit == padded == SHARED_PARTS_WIDTH
    return rows <= QUERY_ROWS[0] and (is_shared or padded <= most)


def _takes_pairs(arch: int) -> bool:
    return arch >= PAIRS_ARCH and arch // 10 in PARTS_WIDTHS


def _adapted(tuned: Choice, arch: int, dtype: str, padded: int, rows: int, unit: int, float8: bool) -> Choice:
    """Return the tuned constants of the split kernel, adapted to the variant so that registers suffice."""
    is_narrow = unit < compiled_units(dtype)[0]
    if dtype == "float32" and unit != padded and _has_parts(arch, dtype, padded, rows, unit, float8):
        return replace(tuned, block_n=min(tuned.block_n, PADDED_KEYS // padded), num_warps=CAREFUL_WARPS)
    if float8 or is_narrow:
        tuned = replace(tuned, num_warps=max(tuned.num_warps, CAREFUL_WARPS))
    if rows <= QUERY_ROWS[0]:
        has_parts = _has_parts(arch, dtype, padded, rows, unit, float8)
        if float8:
            tokens = HALF_KEYS // padded
            if not has_parts:
                tokens = min(tokens, FLOAT8_TOKENS)
            elif rows <= FEW_ROWS:
                tokens = min(2 * tokens, FLOAT8_FEW_TOKENS)
            elif unit == padded:
                tokens = max(tokens, FLOAT8_TOKENS)
            return replace(tuned, block_n=tokens)
        if is_narrow and has_parts:
            return replace(tuned, block_n=min(tuned.block_n, NARROW_TOKENS))
        return tuned
    most, warps = NARROW_TILE if rows == QUERY_ROWS[1] and padded == PADDED_WIDTHS[0] else WIDE_TILE
    tokens = min(tuned.block_n, most)
    if _has_warp_groups(arch):
        keys = FLOAT32_KEYS if dtype == "float32" else HALF_KEYS
        tokens = GROUP_TOKENS if GROUP_TOKENS * padded <= keys else most
    elif arch < GEFORCE and dtype != "float32" and GROUP_TOKENS * padded <= AMPERE_KEYS:
        tokens = GROUP_TOKENS
    stages = min(tuned.num_stages, WIDE_STAGES) if dtype == "float32" else tuned.num_stages
    return replace(tuned, block_n=tokens, num_warps=warps, num_stages=stages)


def _split_kernel(float8: bool) -> str:
    return FLOAT8_KERNEL if float8 else "decode_split_kernel"


def _constants(arch: int, dtype: str, padded: int, rows: int, tuned: Choice, unit: int, float8: bool) -> dict[str, int]:
    """Return the compile-time constants of a variant of the split kernel."""
    # With 32 rows, four warps share a product of 64 columns; they would compute one of 32 columns twice.
    wide = PADDED_WIDTHS[1] if rows == QUERY_ROWS[1] else PADDED_WIDTHS[-1]
    if _has_warp_groups(arch) and dtype != "float32":  # narrower chunks would have twice as many bank conflicts
        wide = PADDED_WIDTHS[2]
    chunk = WIDE_CHUNK if rows > QUERY_ROWS[0] and padded >= wide else CHUNK
    sizes = {"ROWS": rows, "BLOCK_N": tuned.block_n, "BLOCK_D": padded, "WIDTH_UNIT": unit, "CHUNK_D": chunk}
    return sizes | _optional_constants(arch, dtype, padded, rows, tuned, unit, float8)


def _optional_constants(
    arch: int, dtype: str, padded: int, rows: int, tuned: Choice, unit: int, float8: bool
) -> dict[str, int]:
    """Return the compile-time constants that only some variants of the split kernel have."""
    # With 64 rows keys stay in shared memory, but a product that adds their squares needs them in registers.
    adds_squares = rows <= QUERY_ROWS[0] and arch // 10 in ADDS_SQUARES
    if _has_parts(arch, dtype, padded, rows, unit, float8):
        if float8:
            return {"PARTS": min(tuned.num_warps, tuned.block_n // PART_TOKENS)}
        # Rows of 32 columns would have bank conflicts where parts have few tokens.
        wide = {"CHUNK_D": WIDE_CHUNK} if padded == PADDED_WIDTHS[2] and dtype != "float32" else {}
        has_room = rows <= FEW_ROWS and padded >= PADDED_WIDTHS[1]
        narrow = {"CHUNK_D": PARTS_CHUNK} if dtype == "float32" and not has_room else {}
        if dtype == "float32" and _takes_pairs(arch):
            narrow |= {"PAIRS": 1}
        return wide | narrow | {"PARTS": min(tuned.num_warps, tuned.block_n // PART_TOKENS)}
    if float8:
        return {"ADD_SQUARES": int(adds_squares), "Y_BY_FLOAT32": int(arch < FAST_BFLOAT16)}
    return {"ADD_SQUARES": 1} if dtype != "float32" and (adds_squares or arch < GEFORCE) else {}


def split_variants(dtype: str, padded: int, tuned: Choice, unit: int, arch: int, float8: bool = False) -> list[Variant]:
    """Return the variants of the split kernel: one for each number of rows, the fewest first.

    If the unit is the padded width, there are only the variants with at most 16 rows.
    """
    found = []
    counts = row_counts(dtype, padded, arch)
    if unit == padded:
        has_few = _has_parts(arch, dtype, padded, FEW_ROWS, unit, float8)
        counts = (FEW_ROWS, counts[0]) if has_few else counts[:1]
    for rows in counts:
        adapted = _adapted(tuned, arch, dtype, padded, rows, unit, float8)
        constants = _constants(arch, dtype, padded, rows, adapted, unit, float8)
        launch = (adapted.num_warps, adapted.num_stages)
        found.append(Variant(_split_kernel(float8), dtype, tuple(constants.items()), *launch))
    return found


def variants(arch: int) -> list[Variant]:
    """Return the kernel variants to compile ahead of time for one architecture."""
    found = []
    for dtype in FLOATS:
        for padded in PADDED_WIDTHS:
            tuned = choice(TUNED, arch, dtype, padded)
            for unit in (padded, *compiled_units(dtype)):
                found += split_variants(dtype, padded, tuned, unit, arch)
                if arch >= FLOAT8_ARCH and dtype in DECODE_ATTENTION_FLOAT8.types and unit >= FLOAT8_UNIT:
                    found += split_variants(dtype, padded, tuned, unit, arch, float8=True)
            tail = (("BLOCK_D", padded), ("WIDTH_UNIT", COMBINE_UNIT))
            for kernel, block in (
                ("decode_combine_kernel", ("BLOCK_S", COMBINE_SPLITS)),
                ("verify_combine_kernel", ("BLOCK_M", MOST_NEW)),
            ):
                found.append(Variant(kernel, dtype, (block, *tail), COMBINE_WARPS, 1))
    return found
