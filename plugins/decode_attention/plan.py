"""From sizes to launches of decode attention's kernels, with no GPU and no Triton; ``tensorrt.cpp`` does the same."""

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
FEW_ROWS = 8  # the same where each warp has a part of a tile of the head's width: half of a product's rows
# Rows times padded width at most, of float32 and of the half types: larger tiles spill, or take longer than two halves.
FLOAT32_NUMBERS, HALF_NUMBERS = 4096, 8192
WIDE_TILE = (32, 4)  # with 32 rows and more: cached tokens at most, and warps; so that none spills in its loop
NARROW_TILE = (64, 2)  # the same with 32 rows of heads 32 wide, whose products four warps would compute twice
WIDE_STAGES = 2  # with 32 rows and more of float32 at most
# Compute capabilities, without what is behind the point, whose products of 64 rows are those of four warps together and
# read keys and Y where they lie in shared memory: more than 16 rows take 64, of twice as many numbers at most. Cached
# tokens of a tile are 32, or 64 where a tile of K has no more than so many numbers: others spill on 9.0.
WARP_GROUPS = (9, 10)
GROUP_TOKENS = 64
FLOAT32_KEYS, HALF_KEYS = 2048, 8192
AMPERE_KEYS = 4096  # the same of the half types on 8.0
CHUNK = 32  # columns of keys and of Y that are multiplied at once
WIDE_CHUNK = 64  # the same with more rows of wide heads
MOST_NEW = 16  # new tokens: the rows of the tile in which their triangle is solved
TARGET_PROGRAMS = 256  # about two programs for each multiprocessor of a large GPU
MAX_SPLITS = 128  # bounds the workspace and the combine step
COMBINE_SPLITS = 16  # splits that the combine step loads at once
COMBINE_WARPS = 4
COMBINE_UNIT = 4  # its loads are few; one compiled form serves all widths that are multiples of 4
FLOAT8_KERNEL = "decode_split_float8_kernel"  # the same function, compiled with the scales of a cache of E4M3
FLOAT8_ARCH = 89  # the first compute capability that converts E4M3
# Compute capabilities, without what is behind the point, whose tensor cores add the squares of keys in the half types
# and in E4M3 with 16 rows. On 8.0 they add those of half types with any number; on others they are the busiest unit.
ADDS_SQUARES = (9, 10)
# There, with 16 rows, each warp of a program averages a part of every tile, up to this padded width. At
# 128 on 9.0, where half of memory's time is enough for the other loop too, float16 would spill.
PARTS_WIDTHS = {9: 64, 10: 128}
FLOAT32_PARTS_WIDTH = 64  # the same of float32 at most: wider queries do not fit into registers …
KEPT_PARTS_WIDTH = 128  # … but from PAIRS_ARCH on half of them stay in shared memory, in heads of just this width
FLOAT8_PARTS_WIDTH = 128  # the same with a cache of E4M3, on both
FEW_FLOAT32_WIDTH = 128  # of float32 with few rows, whose two parts are one product's rows
# Columns of float32 at once there, whose squares are summed in registers; more spill, but with few rows of wide heads.
PARTS_CHUNK = 16
PAIRS_ARCH = 100  # the first compute capability whose float32 instructions take two numbers
PART_TOKENS = 16  # at least: the rows of a product
NARROW_TOKENS = 128  # of a tile with parts at most where loads are narrow: more would spill
PADDED_KEYS = 4096  # numbers of K in a float32 tile with parts at most, if the head's width is padded: more would spill
GEFORCE = 86  # the first compute capability of Ampere whose tensor cores are GeForce's
FAST_BFLOAT16 = 100  # the first compute capability that converts E4M3 to bfloat16 at the rate of other conversions
# At least, with a cache of E4M3 and with loads that are not a type's widest: with two warps numbers in conversion would
# spill, and addresses, of which narrow loads have twice as many.
CAREFUL_WARPS = 4
# Of a tile with 16 rows at most: it is half as large as one of a half type. With parts it is the least of heads as wide
# as their tile; more of other heads 128 wide would spill.
FLOAT8_TOKENS = 128
FLOAT8_FEW_TOKENS = 256  # the same with few rows
FLOAT8_UNIT = 8  # head widths with a cache of E4M3 are multiples of it: kernels for others would add to the library


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
        tuned: Constants to use instead of the tuned ones.
        diagonal: 0: L_ii is 1; 1: it is training's.
        new: New tokens, 1 to 16.
        float8: Whether the cache is E4M3 with a scale for each row.

    Raises:
        ValueError: Sizes or a device outside what the kernels support.
    """
    check_sizes(batch=batch, heads=heads, groups=groups, new=new)
    if new > MOST_NEW:
        raise ValueError(f"up to {MOST_NEW} new tokens are supported, not {new}")
    if float8 and arch < FLOAT8_ARCH:
        raise ValueError(f"compute capability {arch / 10} has no E4M3: a cache of it needs {FLOAT8_ARCH / 10} or newer")
    if float8 and width % FLOAT8_UNIT:
        raise ValueError(f"head width {width} is not supported: with a cache of E4M3 multiples of {FLOAT8_UNIT} are")
    padded, head_rows = padded_width(width), (groups + 1) * new
    rows = query_rows(head_rows, dtype, padded, arch)
    unit = cache_unit(width, dtype, rows)
    if head_rows <= FEW_ROWS and unit == padded and _has_parts(arch, dtype, padded, FEW_ROWS, unit, float8):
        rows = FEW_ROWS
    tuned = tuned or split_choice(arch, dtype, padded, rows, unit, float8)
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
        constants=_form_constants(arch, dtype, padded, rows, tuned, unit, float8),
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
    # Enough for every smaller batch too: fewer heads take more splits, up to TARGET_PROGRAMS programs in all.
    workspace = max(batch * heads, TARGET_PROGRAMS) * head_rows * (width + 2) * FLOAT32_BYTES
    operator = DECODE_ATTENTION_FLOAT8 if float8 else DECODE_ATTENTION
    return Plan((split, combine), operator.output_names, workspace_bytes=workspace, zeroed_bytes=0)


def row_counts(dtype: str, padded: int, arch: int) -> tuple[int, ...]:
    """Return the rows that tiles of a type and padded width are compiled with for a GPU, but for FEW_ROWS."""
    most = FLOAT32_NUMBERS if dtype == "float32" else HALF_NUMBERS
    if _in_groups(arch):
        return tuple(rows for rows in (QUERY_ROWS[0], QUERY_ROWS[-1]) if rows * padded <= 2 * most)
    return tuple(rows for rows in QUERY_ROWS if rows * padded <= most)


def query_rows(head_rows: int, dtype: str, padded: int, arch: int) -> int:
    """Return the rows of a tile for so many of one key/value head; more than fit take several tiles."""
    counts = row_counts(dtype, padded, arch)
    return next((rows for rows in counts if rows >= head_rows), counts[-1])


def cache_unit(width: int, dtype: str, rows: int) -> int:
    """Return the divisor of ``width`` that the kernel which reads the cache is compiled with, for rows of a tile.

    With the fewest rows a padded width is its own: the compiler then knows how far rows of the cache are apart, and no
    column needs a mask.
    """
    return width if rows <= QUERY_ROWS[0] and width in PADDED_WIDTHS else width_unit(width, dtype)


def split_choice(arch: int, dtype: str, padded: int, rows: int, unit: int, float8: bool = False) -> Choice:
    """Return the constants of the kernel that reads the cache: the tuned ones, with less at once beside many rows.

    With a cache of E4M3, with narrow loads, and with parts of a float32 tile wider than the head, there are
    more warps or fewer tokens.
    """
    return _of_form(choice(TUNED, arch, dtype, padded), arch, dtype, padded, rows, unit, float8)


def _in_groups(arch: int) -> bool:
    return arch // 10 in WARP_GROUPS


def parts_width(arch: int, dtype: str) -> int:
    """Return the largest padded width at which each warp has a part of each tile, if it has 16 rows; 0: none."""
    most = PARTS_WIDTHS.get(arch // 10, 0)
    return min(most, FLOAT32_PARTS_WIDTH) if dtype == "float32" else most


def _has_parts(arch: int, dtype: str, padded: int, rows: int, unit: int, float8: bool) -> bool:
    """Return whether each warp has a part of each tile."""
    most = parts_width(arch, dtype)
    if float8 and most:
        most = FLOAT8_PARTS_WIDTH
    if dtype == "float32" and rows <= FEW_ROWS and most:
        most = FEW_FLOAT32_WIDTH
    kept = dtype == "float32" and _takes_pairs(arch) and unit == padded == KEPT_PARTS_WIDTH
    return rows <= QUERY_ROWS[0] and (kept or padded <= most)


def _takes_pairs(arch: int) -> bool:
    return arch >= PAIRS_ARCH and arch // 10 in PARTS_WIDTHS


def _of_form(tuned: Choice, arch: int, dtype: str, padded: int, rows: int, unit: int, float8: bool) -> Choice:
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
    if _in_groups(arch):
        keys = FLOAT32_KEYS if dtype == "float32" else HALF_KEYS
        tokens = GROUP_TOKENS if GROUP_TOKENS * padded <= keys else most
    elif arch < GEFORCE and dtype != "float32" and GROUP_TOKENS * padded <= AMPERE_KEYS:
        tokens = GROUP_TOKENS
    stages = min(tuned.num_stages, WIDE_STAGES) if dtype == "float32" else tuned.num_stages
    return replace(tuned, block_n=tokens, num_warps=warps, num_stages=stages)


def _split_kernel(float8: bool) -> str:
    return FLOAT8_KERNEL if float8 else "decode_split_kernel"


def _form_constants(
    arch: int, dtype: str, padded: int, rows: int, tuned: Choice, unit: int, float8: bool
) -> dict[str, int]:
    """Return all constants of a form of the kernel that reads the cache."""
    of_all = _constants(arch, dtype, padded, rows, tuned, unit)
    return of_all | _of_type(arch, dtype, padded, rows, tuned, unit, float8)


def _constants(arch: int, dtype: str, padded: int, rows: int, tuned: Choice, unit: int) -> dict[str, int]:
    # With 32 rows four warps share the rows and the columns of a product of 64, and compute it twice if it has 32.
    wide = PADDED_WIDTHS[1] if rows == QUERY_ROWS[1] else PADDED_WIDTHS[-1]
    if _in_groups(arch) and dtype != "float32":  # there more would be written with twice as many conflicts of banks
        wide = PADDED_WIDTHS[2]
    chunk = WIDE_CHUNK if rows > QUERY_ROWS[0] and padded >= wide else CHUNK
    return {"ROWS": rows, "BLOCK_N": tuned.block_n, "BLOCK_D": padded, "WIDTH_UNIT": unit, "CHUNK_D": chunk}


def _of_type(arch: int, dtype: str, padded: int, rows: int, tuned: Choice, unit: int, float8: bool) -> dict[str, int]:
    """Return the constants that only some types and tiles have."""
    # Products of 64 rows want keys in shared memory, and those with ones in registers.
    adds_squares = rows <= QUERY_ROWS[0] and arch // 10 in ADDS_SQUARES
    if _has_parts(arch, dtype, padded, rows, unit, float8):
        if float8:
            return {"PARTS": min(tuned.num_warps, tuned.block_n // PART_TOKENS)}
        # Rows of 32 columns would be written with conflicts of banks where parts have few tokens.
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
    """Return the forms of the kernel that reads the cache: one for each number of rows, the fewest first.

    They depend on the compute capability. Of a unit that is the padded width there are those of the fewest rows.
    """
    found = []
    counts = row_counts(dtype, padded, arch)
    if unit == padded:
        has_few = _has_parts(arch, dtype, padded, FEW_ROWS, unit, float8)
        counts = (FEW_ROWS, counts[0]) if has_few else counts[:1]
    for rows in counts:
        of_rows = _of_form(tuned, arch, dtype, padded, rows, unit, float8)
        sizes = _form_constants(arch, dtype, padded, rows, of_rows, unit, float8)
        launch = (of_rows.num_warps, of_rows.num_stages)
        found.append(Variant(_split_kernel(float8), dtype, tuple(sizes.items()), *launch))
    return found


def variants(arch: int) -> list[Variant]:
    """Return what is compiled ahead of time for one architecture."""
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
