"""Weights of quantized checkpoints, whatever layout they are stored in, and what the layouts' readers share."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from lucid_deploy.json_fields import FieldError, decode

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]
Settings = TypeVar("Settings", bound=msgspec.Struct)
SCALARS: list[Shape] = [(), (1,), (1, 1)]  # the shapes in which tools store a single number
# Tensor types, as safetensors spells them.
WORD_TYPES, INDEX_TYPES, SCALE_TYPES = ("I32",), ("I32", "I64"), ("F16", "BF16", "F32")
FP8 = "F8_E4M3"


@dataclass(frozen=True)
class PackedWeight:
    """A weight in integers: an element is (code − zero) · scale, with zero and scale of its group of inputs.

    Attributes:
        codes: Uint8 ``(out, in)``, 0 to 2^bits − 1.
        zeros: Uint8 ``(out, groups)``.
        scales: ``(out, groups)``, as stored.
        bits: 4 or 8.
        group: Neighbouring inputs that share scale and zero point; the last group may be shorter.
    """

    codes: torch.Tensor
    zeros: torch.Tensor
    scales: torch.Tensor
    bits: int
    group: int

    @property
    def is_symmetric(self) -> bool:
        """Whether every zero point is the middle of the range."""
        return bool((self.zeros == 1 << (self.bits - 1)).all())

    def dequantize(self) -> torch.Tensor:
        """Return the weight ``(out, in)``: float32, or float64 where float32 would round (scales of float32).

        A difference has 9 bits at most and a scale of half precision 11, so their product is exact in float32.
        """
        wide = _exact_dtype(self.scales)
        width = self.codes.shape[1]
        scales = self.scales.to(wide).repeat_interleave(self.group, dim=1)[:, :width]  # (out, in)
        zeros = self.zeros.to(wide).repeat_interleave(self.group, dim=1)[:, :width]
        return (self.codes.to(wide) - zeros) * scales


@dataclass(frozen=True)
class InputRounding:
    """How the inputs of quantized products are rounded to E4M3 before they are multiplied.

    Attributes:
        kind: ``static``: with a scale that the checkpoint stores for each weight; ``token``: the largest magnitude of a
            token's inputs / 448; ``group``: that of each ``size`` neighbouring inputs of a token.
        size: Inputs of a group; None otherwise.
    """

    kind: str
    size: int | None = None


@dataclass(frozen=True)
class FloatWeight:
    """A weight in E4M3: an element is number · scale, with the scale of its block of rows and inputs.

    Attributes:
        codes: Uint8 ``(out, in)``, the bytes of the numbers.
        scales: ``(blocks of rows, blocks of inputs)``, as stored.
        block: Rows and inputs of a block; the last ones may be smaller.
        input_scale: What inputs are divided by before they are rounded, a scalar; None: nothing is stored.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    block: tuple[int, int]
    input_scale: torch.Tensor | None = None

    def dequantize(self) -> torch.Tensor:
        """Return the weight ``(out, in)``: float32, or float64 where float32 would round (scales of float32).

        A number has 4 bits and a scale of half precision 11, so their product is exact in float32.
        """
        import torch

        dtype = _exact_dtype(self.scales)
        (rows, width), (high, wide) = self.codes.shape, self.block
        scales = self.scales.to(dtype).repeat_interleave(high, dim=0)[:rows]
        scales = scales.repeat_interleave(wide, dim=1)[:, :width]  # (out, in)
        return self.codes.view(torch.float8_e4m3fn).to(dtype) * scales


class PackedLayout(Protocol):
    """How one tool stores quantized weights.

    Attributes:
        name: The ``quant_method`` of ``config.json``.
        bits: Bits of an element.
        scheme: The artifact's name for such weights: ``int4``, ``int8`` or ``fp8``.
        inputs: How the inputs of products are rounded; None: not at all.
        required: The parts of a weight, by the last component of their tensors' names: ``qweight``, ``scales``, …
        optional: Parts that may be missing.
        types: The supported types of each part, as safetensors spells them.
    """

    @property
    def name(self) -> str: ...

    @property
    def bits(self) -> int: ...

    @property
    def scheme(self) -> str: ...

    @property
    def inputs(self) -> InputRounding | None: ...

    @property
    def required(self) -> tuple[str, ...]: ...

    @property
    def optional(self) -> tuple[str, ...]: ...

    @property
    def types(self) -> Mapping[str, tuple[str, ...]]: ...

    def shape(self, shapes: dict[str, Shape]) -> tuple[int, int]:
        """Return ``(out, in)`` of a weight from the shapes of its parts.

        Raises:
            ValueError: They do not fit each other or the settings.
        """

    def read(self, parts: dict[str, torch.Tensor]) -> PackedWeight | FloatWeight:
        """Return a weight from its parts.

        Raises:
            ValueError: Their values are not supported.
        """


def read_settings(
    settings: dict[str, Any], form: type[Settings], ignored: Collection[str] = (), where: str = "quantization_config"
) -> Settings:
    """Check settings against a struct. Null counts as absent; unknown keys might change the numbers' meaning.

    Args:
        settings: A JSON object.
        form: The keys that are read, with their types.
        ignored: Keys that do not change what the numbers mean.
        where: What the settings are in, for messages.

    Raises:
        ValueError: A key is unknown, missing or of another type or value.
    """
    given = {key: value for key, value in settings.items() if value is not None and key not in ignored}
    unknown = sorted(given.keys() - set(form.__struct_fields__))
    if unknown:
        raise ValueError(f"{where} has the unknown key {unknown[0]!r}, which may change what the numbers mean")
    try:
        return decode(json.dumps(given).encode(), form, where)
    except FieldError as error:
        raise ValueError(f"in {where}: {str(error).rstrip('.')}") from error


def unpack_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the numbers of int32 words ``(…, n)``, lowest bits first, uint8 ``(…, n·32/bits)``."""
    import torch

    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((words[..., None] >> shifts) & ((1 << bits) - 1)).to(torch.uint8).flatten(-2)


def count_blocks(size: int, block: int) -> int:
    """Return how many blocks or groups an axis has; the last one may be smaller."""
    return -(-size // block)


def group_inputs(width: int, size: int) -> int:
    """Return the inputs of a group in a row of ``width``; −1, and a size above the row's, mean the whole row."""
    return width if size == -1 else min(size, width)


def check_group_size(size: int) -> int:
    """Return a group size if it is positive or −1; raise ValueError otherwise."""
    if size < 1 and size != -1:
        raise ValueError(f"group_size is {size}, and must be positive, or -1 for whole rows")
    return size


def check_shapes(shapes: dict[str, Shape], expected: dict[str, list[Shape]]) -> None:
    """Compare the shapes of parts with those that the settings allow; parts may be missing.

    Raises:
        ValueError: One differs.
    """
    for part, allowed in expected.items():
        if part in shapes and tuple(shapes[part]) not in allowed:
            wanted = " or ".join(str(list(shape)) for shape in allowed)
            raise ValueError(f"{part} has the shape {list(shapes[part])}, but the settings require {wanted}")


def check_order(index: torch.Tensor | None, width: int, group: int, remedy: str) -> None:
    """Refuse groups that are not of neighbouring inputs.

    Args:
        index: The group of each input, ``(width,)``; None: neighbours share a group.
        width: Inputs of the layer.
        group: Inputs that share a scale.
        remedy: The setting that avoids such groups.

    Raises:
        ValueError: Inputs are grouped in another order.
    """
    import torch

    if index is not None and not index.equal((torch.arange(width) // group).to(index.dtype)):
        raise ValueError(f"groups of reordered inputs (activation order) are not supported. Quantize with {remedy}")


def _exact_dtype(scales: torch.Tensor) -> torch.dtype:
    import torch

    return torch.float32 if scales.dtype in (torch.float16, torch.bfloat16) else torch.float64
