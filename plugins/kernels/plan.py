"""From shapes to launches: grids, constants, workspace and arguments of every kernel, with no GPU and no Triton.

The Python launcher runs these plans and the TensorRT plugin computes the same numbers in C++; a test holds the two
together. Tensors are ``(batch, heads, tokens, width)``, contiguous.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from importlib.resources import files

DTYPES = ("float32", "float16", "bfloat16")
MIN_WIDTH, MAX_WIDTH = 16, 256
PADDED_WIDTHS = (32, 64, 128, 256)  # head widths the kernels compute with; others are padded by masks
QUERY_ROWS = (16, 32)  # rows of a decode tile: query heads of one key/value head, and the new key
TARGET_PROGRAMS = 256  # about two programs for each multiprocessor of a large GPU
MAX_SPLITS = 128  # bounds the workspace and the combine step
COMBINE_SPLITS = 16  # splits that the combine step loads at once
COMBINE_WARPS = 4
COMBINE_UNIT = 4  # its loads are few; one compiled form serves all widths that are multiples of 4
INT32_BYTES = FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Choice:
    """Tuned constants of one kernel for one architecture, type and padded width."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Step:
    """One kernel launch.

    Attributes:
        kernel: Name of the Triton function.
        dtype: Type of the operator's tensors.
        grid: Programs along x, y and z.
        pointers: The tensors it takes, by the operators' names; ``workspace`` is the plan's.
        scalars: The integers and floats that follow the pointers.
        constants: The compile-time constants.
        num_warps: Warps of a program.
        num_stages: Depth of the software pipeline.
    """

    kernel: str
    dtype: str
    grid: tuple[int, int, int]
    pointers: tuple[str, ...]
    scalars: dict[str, int | float]
    constants: dict[str, int]
    num_warps: int
    num_stages: int

    @property
    def variant(self) -> str:
        """Name of the compiled form: function, type, padded width, width unit and, when decoding, query rows."""
        return variant_name(self.kernel, self.dtype, self.constants)


@dataclass(frozen=True)
class Plan:
    """The launches of one operator call, and the scratch memory they share.

    Attributes:
        steps: Launches in order, on one stream.
        outputs: The tensors they write, by the operators' names.
        workspace_bytes: Scratch memory, contents arbitrary.
        zeroed_bytes: How much of its beginning must be zero before the first launch.
    """

    steps: tuple[Step, ...]
    outputs: tuple[str, ...]
    workspace_bytes: int
    zeroed_bytes: int


def variant_name(kernel: str, dtype: str, constants: dict[str, int]) -> str:
    """Return the name that tells one compiled form of a kernel from the others of its architecture."""
    rows = f"_r{constants['ROWS']}" if "ROWS" in constants else ""
    return f"{kernel.removesuffix('_kernel')}_{dtype}_d{constants['BLOCK_D']}_u{constants['WIDTH_UNIT']}{rows}"


@functools.cache
def _table() -> dict:
    return json.loads(files(__package__).joinpath("table.json").read_text())


def architectures() -> list[int]:
    """Return the compute capabilities (80 for 8.0) that the table has choices for, ascending."""
    return sorted(int(arch) for arch in _table()["precondition"])


def choice(kernel: str, arch: int, dtype: str, padded: int) -> Choice:
    """Return the tuned constants of ``precondition`` or ``decode`` from the table.

    Args:
        kernel: ``precondition`` or ``decode``.
        arch: Compute capability, 90 for 9.0. One that is not in the table takes the next lower one's choices.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        padded: One of PADDED_WIDTHS.

    Raises:
        ValueError: A device older than all in the table.
    """
    known = [a for a in architectures() if a <= arch]
    if not known:
        raise ValueError(
            f"compute capability {arch / 10} is too old: the oldest supported is {architectures()[0] / 10}"
        )
    return Choice(*_table()[kernel][str(known[-1])][dtype][str(padded)])


def padded_width(width: int) -> int:
    """Return the width the kernels compute with; ValueError outside 16 to 256."""
    if not MIN_WIDTH <= width <= MAX_WIDTH:
        raise ValueError(f"head width {width} is not supported: the kernels take {MIN_WIDTH} to {MAX_WIDTH}")
    return next(padded for padded in PADDED_WIDTHS if padded >= width)


def width_unit(width: int, dtype: str) -> int:
    """Return the divisor of ``width`` that the kernel is compiled with: elements of the widest aligned load."""
    if width % 8 == 0 and dtype != "float32":
        return 8
    return 4 if width % 4 == 0 else 1


def query_rows(groups: int) -> int:
    """Return the rows of a decode tile for ``groups`` query heads per key/value head; more than fit take several."""
    return next((rows for rows in QUERY_ROWS if rows > groups), QUERY_ROWS[-1])


def _scores(width: int) -> dict[str, float]:
    """Return what turns a product of keys into the exponent of 2, for E and for softmax alike."""
    return {"scale": math.log2(math.e) / math.sqrt(width), "shift": math.sqrt(width) * math.log2(math.e)}


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
) -> Plan:
    """Plan ``Precondition`` for K and V ``(batch, heads, new, width)`` after ``past`` tokens.

    Args:
        batch: Sequences.
        heads: Key/value heads.
        new: New tokens, at least 1.
        past: Cached tokens, at least 0.
        width: Head width, 16 to 256.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        epsilon: Added to the mean square of a key.
        arch: Compute capability, 90 for 9.0.
        tuned: Constants to use instead of the table's.

    Raises:
        ValueError: Sizes or a device outside what the kernels support.
    """
    _check_sizes(batch=batch, heads=heads, new=new)
    padded, unit = padded_width(width), width_unit(width, dtype)
    tuned = tuned or choice("precondition", arch, dtype, padded)
    step = Step(
        kernel="precondition_kernel",
        dtype=dtype,
        grid=(-(-new // tuned.block_m) * batch * heads, 1, 1),
        pointers=("K", "V", "K_past", "Y_past", "mask", "Y", "workspace"),
        scalars={
            "n_new": new,
            "n_past": past,
            "n_heads": heads,
            "n_batch_heads": batch * heads,
            "width_units": width // unit,
            "epsilon": epsilon,
            **_scores(width),
        },
        constants={"BLOCK_M": tuned.block_m, "BLOCK_N": tuned.block_n, "BLOCK_D": padded, "WIDTH_UNIT": unit},
        num_warps=tuned.num_warps,
        num_stages=tuned.num_stages,
    )
    workspace = (1 + batch * heads) * INT32_BYTES
    return Plan((step,), ("Y",), workspace_bytes=workspace, zeroed_bytes=workspace)


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
) -> Plan:
    """Plan ``DecodeAttention`` for Q ``(batch, heads · groups, 1, width)`` over ``past`` cached rows.

    Args and errors as :func:`plan_precondition`; ``groups`` is query heads per key/value head.
    """
    _check_sizes(batch=batch, heads=heads, groups=groups)
    padded, unit, rows = padded_width(width), width_unit(width, dtype), query_rows(groups)
    chunks = -(-groups // (rows - 1))
    tuned = tuned or choice("decode", arch, dtype, padded)
    splits = max(1, min(-(-past // tuned.block_n), MAX_SPLITS, TARGET_PROGRAMS // (batch * heads)))
    sizes = {"n_past": past, "n_heads": heads, "n_groups": groups, "n_splits": splits}
    scores, combine_unit = _scores(width), min(unit, COMBINE_UNIT)
    split = Step(
        kernel="decode_split_kernel",
        dtype=dtype,
        grid=(batch * heads, splits, chunks),
        pointers=("Q", "K_new", "K", "Y", "mask", "workspace"),
        scalars={**sizes, "width_units": width // unit, "epsilon": epsilon, **scores},
        constants={"ROWS": rows, "BLOCK_N": tuned.block_n, "BLOCK_D": padded, "WIDTH_UNIT": unit},
        num_warps=tuned.num_warps,
        num_stages=tuned.num_stages,
    )
    combine = Step(
        kernel="decode_combine_kernel",
        dtype=dtype,
        grid=(batch * heads, groups, 1),
        pointers=("Q", "K_new", "V_new", "mask", "workspace", "O", "Y_new"),
        scalars={**sizes, "width_units": width // combine_unit, "scale": scores["scale"]},
        constants={"BLOCK_S": COMBINE_SPLITS, "BLOCK_D": padded, "WIDTH_UNIT": combine_unit},
        num_warps=COMBINE_WARPS,
        num_stages=1,
    )
    # Enough for every smaller batch too: fewer heads take more splits, up to TARGET_PROGRAMS programs in all.
    workspace = max(batch * heads, TARGET_PROGRAMS) * (groups + 1) * (width + 2) * FLOAT32_BYTES
    return Plan((split, combine), ("O", "Y_new"), workspace_bytes=workspace, zeroed_bytes=0)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")
