"""From sizes to launches of Triton kernels, with no GPU and no Triton: what the operators' plans have in common.

An operator's ``plan.py`` says with which grid, constants, workspace and arguments its kernels are launched. The Python
launcher runs such a plan, and the TensorRT plugin computes the same numbers in C++; a test holds the two together.
Tensors are ``(batch, heads, tokens, width)``, contiguous.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path

MIN_WIDTH, MAX_WIDTH = 16, 256
PADDED_WIDTHS = (32, 64, 128, 256)  # head widths the kernels compute with; others are padded by masks
INT32_BYTES = FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Choice:
    """Tuned constants of one kernel for one architecture, type and padded width.

    ``chunk`` is of the preconditioner and the delta rule: the columns of keys that are multiplied at once, 0 for all.
    ``int8`` is of the preconditioner in bfloat16: 1 where E is a bfloat16 number and an int8 one, 0 where it is two of
    bfloat16.
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


@dataclass(frozen=True)
class Variant:
    """One kernel to compile ahead of time: Triton function, type of the tensors, constants, how it is launched."""

    kernel: str
    dtype: str
    constants: tuple[tuple[str, int], ...]
    num_warps: int
    num_stages: int

    @property
    def name(self) -> str:
        """The name a plan's step calls it by."""
        return variant_name(self.kernel, self.dtype, dict(self.constants))

    @property
    def padded_width(self) -> int:
        """The head width it computes with, one of PADDED_WIDTHS."""
        return dict(self.constants)["BLOCK_D"]


@functools.cache
def _choices(tuned: Path) -> dict[str, dict[str, dict[str, list[int]]]]:
    return json.loads(tuned.read_text())["choices"]


def architectures(tuned: Path) -> list[int]:
    """Return the compute capabilities (80 for 8.0) that an operator's ``tuned.json`` has choices for, ascending."""
    return sorted(int(arch) for arch in _choices(tuned))


def choice(tuned: Path, arch: int, dtype: str, padded: int) -> Choice:
    """Return the tuned constants of an operator's main kernel.

    Args:
        tuned: The operator's ``tuned.json``.
        arch: Compute capability, 90 for 9.0. One that is not in the file takes the next lower one's choices.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        padded: One of PADDED_WIDTHS.

    Raises:
        ValueError: A device older than all in the file.
    """
    known = [each for each in architectures(tuned) if each <= arch]
    if not known:
        oldest = architectures(tuned)[0] / 10
        raise ValueError(f"compute capability {arch / 10} is too old: the oldest supported is {oldest}")
    return Choice(*_choices(tuned)[str(known[-1])][dtype][str(padded)])


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


def compiled_units(dtype: str) -> tuple[int, ...]:
    """Return the width units that kernels are compiled with ahead of time: for widths that are multiples of 4."""
    return (4,) if dtype == "float32" else (8, 4)


def score_scalars(width: int) -> dict[str, float]:
    """Return what turns a product of keys into the exponent of 2, for E and for softmax alike."""
    return {"scale": math.log2(math.e) / math.sqrt(width), "shift": math.sqrt(width) * math.log2(math.e)}


def check_sizes(**sizes: int) -> None:
    """Raise ValueError that names the first size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")
