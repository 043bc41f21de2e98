"""Common parts of the operators' launch plans for Triton kernels; planning needs neither a GPU nor Triton.

From tensor sizes, an operator's ``plan.py`` computes the grid, constants, workspace and arguments of each launch. The
Python launcher executes the plan. The TensorRT plugin computes the same numbers in C++; a test compares the two.
Tensors are ``(batch, heads, tokens, width)``, contiguous.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path

MIN_WIDTH, MAX_WIDTH = 16, 256
PADDED_WIDTHS = (32, 64, 128, 256)  # head widths of the kernels' blocks; other widths are padded by masks
INT32_BYTES = FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Choice:
    """Tuned constants of one kernel for one architecture, dtype and padded width.

    ``chunk`` (preconditioner and delta rule) is the number of key columns multiplied at once; 0 means all. ``int8``
    (preconditioner in bfloat16) is 1 to split E into a bfloat16 and an int8 part, 0 for two bfloat16 parts.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    chunk: int = 0
    int8: int = 0


@dataclass(frozen=True)
class Step:
    """One kernel launch.

    Attributes:
        kernel: Name of the Triton function.
        dtype: Dtype of the operator's tensors.
        grid: Programs along x, y and z.
        pointers: The kernel's tensor arguments: names of the operator's tensors, or ``workspace``.
        scalars: The integer and float arguments that follow the pointers.
        constants: The compile-time constants.
        num_warps: Warps per program.
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
        """Name of the compiled variant: function, dtype, padded width, width unit and, for decoding, rows of a tile."""
        return variant_name(self.kernel, self.dtype, self.constants)


@dataclass(frozen=True)
class Plan:
    """The kernel launches of one operator call, and the workspace that they share.

    Attributes:
        steps: Launches in order, on one stream.
        outputs: Names of the tensors that they write.
        workspace_bytes: Size of the workspace, whose contents may be arbitrary but for ``zeroed_bytes``.
        zeroed_bytes: Size of the workspace's first part, which must be zero before the first launch.
    """

    steps: tuple[Step, ...]
    outputs: tuple[str, ...]
    workspace_bytes: int
    zeroed_bytes: int


def variant_name(kernel: str, dtype: str, constants: dict[str, int]) -> str:
    """Return the name of a kernel variant, unique within an architecture."""
    rows = f"_r{constants['ROWS']}" if "ROWS" in constants else ""
    return f"{kernel.removesuffix('_kernel')}_{dtype}_d{constants['BLOCK_D']}_u{constants['WIDTH_UNIT']}{rows}"


@dataclass(frozen=True)
class Variant:
    """A kernel to compile ahead of time: Triton function, dtype of the tensors, constants, warps and stages."""

    kernel: str
    dtype: str
    constants: tuple[tuple[str, int], ...]
    num_warps: int
    num_stages: int

    @property
    def name(self) -> str:
        """The variant's name, equal to :attr:`Step.variant` of its launches."""
        return variant_name(self.kernel, self.dtype, dict(self.constants))

    @property
    def padded_width(self) -> int:
        """The head width of the kernel's blocks, one of PADDED_WIDTHS."""
        return dict(self.constants)["BLOCK_D"]


@functools.cache
def _choices(tuned: Path) -> dict[str, dict[str, dict[str, list[int]]]]:
    return json.loads(tuned.read_text())["choices"]


def architectures(tuned: Path) -> list[int]:
    """Return the compute capabilities (80 for 8.0) in an operator's ``tuned.json``, ascending."""
    return sorted(int(arch) for arch in _choices(tuned))


def choice(tuned: Path, arch: int, dtype: str, padded: int) -> Choice:
    """Return the tuned constants of an operator's main kernel.

    Args:
        tuned: The operator's ``tuned.json``.
        arch: Compute capability, 90 for 9.0. If the file lacks it, the next lower one is used.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        padded: One of PADDED_WIDTHS.

    Raises:
        ValueError: The device is older than all architectures in the file.
    """
    known = [each for each in architectures(tuned) if each <= arch]
    if not known:
        oldest = architectures(tuned)[0] / 10
        raise ValueError(f"compute capability {arch / 10} is too old: the oldest supported is {oldest}")
    return Choice(*_choices(tuned)[str(known[-1])][dtype][str(padded)])


def padded_width(width: int) -> int:
    """Return the smallest of PADDED_WIDTHS that holds ``width``; ValueError if ``width`` is not 16 to 256."""
    if not MIN_WIDTH <= width <= MAX_WIDTH:
        raise ValueError(f"head width {width} is not supported: the kernels take {MIN_WIDTH} to {MAX_WIDTH}")
    return next(padded for padded in PADDED_WIDTHS if padded >= width)


def width_unit(width: int, dtype: str) -> int:
    """Return how many elements the kernels load at once: 8 (16-bit dtypes) or 4 if that divides ``width``, else 1."""
    if width % 8 == 0 and dtype != "float32":
        return 8
    return 4 if width % 4 == 0 else 1


def compiled_units(dtype: str) -> tuple[int, ...]:
    """Return the :func:`width_unit` values of multiples of 4, for which kernels are compiled ahead of time."""
    return (4,) if dtype == "float32" else (8, 4)


def score_scalars(width: int) -> dict[str, float]:
    """Return the factor that turns dot products into base-2 exponents, and the shift to subtract from those of E."""
    return {"scale": math.log2(math.e) / math.sqrt(width), "shift": math.sqrt(width) * math.log2(math.e)}


def check_sizes(**sizes: int) -> None:
    """Raise a ValueError that names the first size below 1, if there is one."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")
