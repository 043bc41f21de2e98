"""Layouts of quantized weights: how a checkpoint stores the parts of a weight, and how to read them.

A layout says how the parts are named, typed and oriented. It is an instance of one of two classes:

- :class:`IntegerLayout`: integers of 4 or 8 bits with scales and zero points, as AutoGPTQ, AutoAWQ and
  compressed-tensors store them;
- :class:`FloatLayout`: values in E4M3 with scales.

:mod:`lucid_deploy.model.packed.settings` creates them from ``quantization_config``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lucid_deploy.model.packed.weight import FloatWeight, InputRounding, PackedWeight, count_blocks

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]
SCALARS: list[Shape] = [(), (1,), (1, 1)]  # the shapes in which tools store a scalar
# Tensor types, as safetensors spells them.
FP8 = "F8_E4M3"
_WORDS, _INDICES, _SCALES = ("I32",), ("I32", "I64"), ("F16", "BF16", "F32")
AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # for each output, its value's position in AutoAWQ's words of eight values


class PackedLayout(ABC):
    """How one tool stores quantized weights.

    Attributes:
        scheme: The name of the quantization in an artifact: ``int4``, ``int8`` or ``fp8``.
        required: The parts that a weight must have, by the last component of their names: ``qweight``, ``scales``, …
        types: The supported types of each part, as safetensors spells them.
    """

    name: str  # the quant_method of config.json
    bits: int  # bits per element
    inputs: InputRounding | None  # how inputs (activations) are rounded; None: not at all
    optional: tuple[str, ...] = ()  # parts that may be missing

    @property
    @abstractmethod
    def scheme(self) -> str: ...

    @property
    @abstractmethod
    def required(self) -> tuple[str, ...]: ...

    @property
    @abstractmethod
    def types(self) -> Mapping[str, tuple[str, ...]]: ...

    @abstractmethod
    def shape(self, shapes: dict[str, Shape]) -> tuple[int, int]:
        """Return ``(out, in)`` of a weight from the shapes of its parts.

        Raises:
            ValueError: The shapes contradict each other or the settings.
        """

    @abstractmethod
    def read(self, parts: dict[str, torch.Tensor]) -> PackedWeight | FloatWeight:
        """Return a weight from its parts.

        Raises:
            ValueError: The values are damaged, contradict each other, or are not supported.
        """


@dataclass(frozen=True)
class IntegerLayout(PackedLayout):
    """Integer weights with scales and zero points."""

    name: str
    bits: int
    group_size: int  # inputs that share a scale; −1: a whole row
    numbers: str  # name of the part with the quantized values, packed into int32, lowest bits first
    scale: str  # name of the scales
    zero: str  # name of the zero points; empty: every zero point is the middle of the range
    index: str = ""  # name of the part with each input's group; groups must be in order; empty: there is none
    remedy: str = ""  # the quantizer's setting that keeps groups in order
    ordered: bool = False  # whether index is required, because groups may be out of order
    size: str = ""  # name of the part that stores (out, in); empty: there is none
    transposed: bool = False  # whether parts are stored with the inputs first: (in, out), (groups, out)
    along_outputs: bool = False  # whether a word packs consecutive outputs; otherwise consecutive inputs
    places: tuple[int, ...] = ()  # for each output, its value's position in a word; empty: in order
    zeros_less_one: bool = False  # whether zero points are stored minus one
    middle: bool = False  # whether the settings say that every stored zero point is the middle of the range
    inputs = None

    @property
    def scheme(self) -> str:
        return f"int{self.bits}"

    @property
    def required(self) -> tuple[str, ...]:
        names = (self.numbers, self.size, self.scale, self.zero, self.index if self.ordered else "")
        return tuple(name for name in names if name)

    @property
    def optional(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.index,) if self.index else ()

    @property
    def types(self) -> Mapping[str, tuple[str, ...]]:
        words = dict.fromkeys((self.numbers, self.zero), _WORDS)
        return {**words, self.scale: _SCALES, self.index: _INDICES, self.size: _INDICES}

    def shape(self, shapes: dict[str, Shape]) -> tuple[int, int]:
        out, width = shapes[self.numbers][::-1] if self.transposed else shapes[self.numbers]
        if self.along_outputs:
            out = out * 32 // self.bits
        else:
            width = width * 32 // self.bits
        groups = count_blocks(width, _group(width, self.group_size))
        scales: list[Shape] = [(out, groups), *([(out,)] if groups == 1 else [])]
        expected: dict[str, list[Shape]] = {
            self.scale: scales,
            self.zero: [(count_blocks(out * self.bits, 32), groups)],
        }
        if self.transposed:
            expected = {part: [shape[::-1] for shape in allowed] for part, allowed in expected.items()}
        _check_shapes(shapes, {**expected, self.size: [(2,)], self.index: [(width,)]})
        return out, width

    def read(self, parts: dict[str, torch.Tensor]) -> PackedWeight:
        if self.transposed:
            parts = {name: part.mT if part.ndim > 1 else part for name, part in parts.items()}
        codes = self._codes(parts)  # (out, in)
        out, width = codes.shape
        group = _group(width, self.group_size)
        groups = count_blocks(width, group)
        self._check_order(parts.get(self.index), width, group)
        scales = parts[self.scale].reshape(out, groups).contiguous()
        return PackedWeight(codes, self._zeros(parts, out, groups), scales, self.bits, group)

    def _codes(self, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        numbers = parts[self.numbers]
        codes = self._unpack_outputs(numbers) if self.along_outputs else _unpack(numbers, self.bits)
        if self.size and codes.shape != (sizes := tuple(int(size) for size in parts[self.size])):
            raise ValueError(f"{self.size} is {list(sizes)}, but {self.numbers} holds {list(codes.shape)}")
        return codes

    def _zeros(self, parts: dict[str, torch.Tensor], out: int, groups: int) -> torch.Tensor:
        """Return the zero points in the units of the codes: uint8 ``(out, groups)``."""
        import torch

        half = 1 << (self.bits - 1)
        if not self.zero:
            return torch.full((out, groups), half, dtype=torch.uint8)
        stored = parts[self.zero]
        if len(stored) != count_blocks(out * self.bits, 32):
            raise ValueError(f"{self.zero} has {len(stored)} rows of words for {out} outputs")
        zeros = self._unpack_outputs(stored)[:out]
        form, most = "gptq" if self.zeros_less_one else "gptq_v2", (1 << self.bits) - 1
        if self.zeros_less_one:
            if (zeros == most).any():
                raise ValueError(
                    f"zero points are stored as {most} in the format gptq, which may mean 0 or {most + 1}. Save it in "
                    "the format gptq_v2"
                )
            zeros = zeros + 1
        # Kernels for symmetric weights assume the middle of the range, others read the zero points: both must agree.
        other = zeros[zeros != half]
        if self.middle and len(other):
            raise ValueError(
                f"sym is true, which means the zero point {half}, but in its format ({form}) the stored zero point is "
                f"{int(other[0])}. Correct checkpoint_format or sym"
            )
        return zeros.contiguous()

    def _unpack_outputs(self, words: torch.Tensor) -> torch.Tensor:
        """Unpack words ``(out·bits/32, n)``, which pack consecutive outputs, into uint8 ``(out, n)``."""
        numbers = _unpack(words.mT, self.bits)  # (n, out)
        if self.places:
            numbers = numbers.unflatten(-1, (-1, len(self.places)))[..., list(self.places)].flatten(-2)
        return numbers.mT.contiguous()

    def _check_order(self, index: torch.Tensor | None, width: int, group: int) -> None:
        """Raise ValueError unless each group is a run of consecutive inputs, in order."""
        import torch

        if index is not None and not index.equal((torch.arange(width) // group).to(index.dtype)):
            raise ValueError(
                f"groups of reordered inputs (activation order) are not supported. Quantize with {self.remedy}"
            )


@dataclass(frozen=True)
class FloatLayout(PackedLayout):
    """Weights in E4M3: ``weight`` ``(out, in)`` with a scale for each block."""

    name: str
    block: tuple[int | None, int | None]  # rows and inputs that share a scale; None: all rows or all inputs
    scale: str  # name of the weight's scales
    input_scale: str | None  # name of the inputs' scale; None: it is not stored
    inputs: InputRounding | None
    bits = 8

    @property
    def scheme(self) -> str:
        return "fp8"

    @property
    def required(self) -> tuple[str, ...]:
        return ("weight", self.scale, *([] if self.input_scale is None else [self.input_scale]))

    @property
    def types(self) -> Mapping[str, tuple[str, ...]]:
        return {"weight": (FP8,), self.scale: _SCALES, self.input_scale or "": _SCALES}

    def shape(self, shapes: dict[str, Shape]) -> tuple[int, int]:
        rows, width = shapes["weight"]
        scales: list[Shape] = [self._blocks(rows, width)]
        if self.block == (None, None):
            scales = SCALARS
        elif self.block == (1, None):
            scales.append((rows,))
        _check_shapes(shapes, {self.scale: scales, self.input_scale or "": SCALARS})
        return rows, width

    def read(self, parts: dict[str, torch.Tensor]) -> FloatWeight:
        import torch

        weight = parts["weight"]
        if weight.float().isnan().any():
            raise ValueError("the weight contains NaN: the checkpoint is damaged")
        rows, width = weight.shape
        inputs = None
        if self.input_scale is not None:
            inputs = parts[self.input_scale].reshape(())
            if not (inputs.isfinite() and inputs > 0):
                raise ValueError(f"{self.input_scale} is {inputs.item():g}, and must be positive")
        high, wide = self.block
        block = min(high or rows, rows), min(wide or width, width)
        scales = parts[self.scale].reshape(self._blocks(rows, width))
        return FloatWeight(weight.view(torch.uint8), scales, block, inputs)

    def _blocks(self, rows: int, width: int) -> tuple[int, int]:
        """Return the number of blocks of a weight along its rows and along its inputs."""
        high, wide = self.block
        return count_blocks(rows, high or rows), count_blocks(width, wide or width)


def _unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Unpack int32 words ``(…, n)``, lowest bits first, into uint8 ``(…, n·32/bits)``."""
    import torch

    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((words[..., None] >> shifts) & ((1 << bits) - 1)).to(torch.uint8).flatten(-2)


def _group(width: int, size: int) -> int:
    """Return the number of inputs per group in a row of ``width``; −1, or more than ``width``, is the whole row."""
    return width if size == -1 else min(size, width)


def _check_shapes(shapes: dict[str, Shape], expected: dict[str, list[Shape]]) -> None:
    """Raise ValueError if a part has a shape that the settings do not allow; missing parts are skipped."""
    for part, allowed in expected.items():
        if part in shapes and tuple(shapes[part]) not in allowed:
            wanted = " or ".join(str(list(shape)) for shape in allowed)
            raise ValueError(f"{part} has the shape {list(shapes[part])}, but the settings require {wanted}")
