"""A weight as a quantized checkpoint means it, whatever the layout it is stored in."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from lucid_deploy.model.packed.float_weight import FloatWeight, InputRounding

Shape = tuple[int, ...]
# Types of parts that layouts have in common, as safetensors spells them.
WORD_TYPES, INDEX_TYPES, SCALE_TYPES = ("I32",), ("I32", "I64"), ("F16", "BF16", "F32")


@dataclass(frozen=True)
class PackedWeight:
    """Whole numbers, zero points and scales: an element is (code − zero) · scale, of the group its input is in.

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
        import torch

        wide = torch.float32 if self.scales.dtype in (torch.float16, torch.bfloat16) else torch.float64
        width = self.codes.shape[1]
        scales = self.scales.to(wide).repeat_interleave(self.group, dim=1)[:, :width]
        zeros = self.zeros.to(wide).repeat_interleave(self.group, dim=1)[:, :width]
        return (self.codes.to(wide) - zeros) * scales


class PackedLayout(Protocol):
    """How one tool stores weights.

    Attributes:
        name: As ``quant_method`` says it.
        bits: Of an element.
        scheme: How an artifact with these numbers calls them: ``int4``, ``int8`` or ``fp8``.
        inputs: How the inputs of products are rounded; None: not at all.
        required: What a weight is stored in, by the last part of the names of tensors: ``qweight``, ``scales``, …
        optional: What may lie beside that.
        types: In which types each of them is read, as safetensors spells them.
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
            ValueError: They do not fit each other or the settings; the text says which.
        """

    def read(self, parts: dict[str, torch.Tensor]) -> PackedWeight | FloatWeight:
        """Return a weight from its parts.

        Raises:
            ValueError: What they say is not computed here; the text says why.
        """


def unpack_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the numbers of int32 words ``(…, n)``, lowest bits first, uint8 ``(…, n·32/bits)``."""
    import torch

    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((words[..., None] >> shifts) & ((1 << bits) - 1)).to(torch.uint8).flatten(-2)


def count_groups(width: int, group: int) -> int:
    """Return how many groups a row of ``width`` inputs has."""
    return -(-width // group)


def group_inputs(width: int, size: int) -> int:
    """Return how many neighbouring inputs of a row share a scale; with a size of −1 or above the row's, all of it."""
    return width if size == -1 else min(size, width)


def check_order(index: torch.Tensor | None, width: int, group: int, name: str, remedy: str) -> None:
    """Refuse groups that are not of neighbouring inputs.

    Args:
        index: Of each input its group, ``(width,)``; None: they are as they stand.
        width: Inputs of the layer.
        group: Inputs that share a scale.
        name: What makes such an index, for the message.
        remedy: How to quantize without.

    Raises:
        ValueError: They are in another order.
    """
    import torch

    if index is not None and not index.equal((torch.arange(width) // group).to(index.dtype)):
        raise ValueError(
            f"its inputs are in groups in another order ({name}), which no operator here reads. Quantize it with "
            f"{remedy}"
        )


def check_keys(settings: dict[str, Any], known: Collection[str], where: str = "") -> None:
    """Refuse settings whose meaning is not known here: they may change what the numbers mean.

    Args:
        settings: Keys and values; None is no value.
        known: Keys that are read, or that change nothing.
        where: What they are in, for the message, such as ``config_groups'``.

    Raises:
        ValueError: There are some; the text names them.
    """
    unknown = [key for key, value in settings.items() if key not in known and value is not None]
    if unknown:
        raise ValueError(
            f"its {where and where + ' '}{', '.join(map(repr, unknown))} is not known here, and may change what its "
            "numbers mean"
        )


def check_method(settings: dict[str, Any], name: str) -> None:
    """Refuse ``method``, as gptqmodel calls ``quant_method`` too, where it names another one.

    Raises:
        ValueError: It does.
    """
    if settings.get("method") not in (None, name):
        raise ValueError(f"its method is {settings['method']!r}, and its quant_method {name}; one method is read")


def read_bits(value: object, known: tuple[int, ...]) -> int:
    """Return the bits of an element that settings name.

    Raises:
        ValueError: They are no whole number, or one that is not read.
    """
    if type(value) is not int or value not in known:  # True and 4.0 are equal to numbers and count no bits
        raise ValueError(f"its bits are {value!r}; {_read(known)}")
    return value


def _read(known: tuple[Any, ...]) -> str:
    """Say which of a setting's values, or of a part's types, are read."""
    *others, last = map(str, known)
    return f"{', '.join(others)} and {last} are read" if others else f"{last} is read"


def read_switch(settings: dict[str, Any], key: str, absent: bool) -> bool:
    """Return a setting that is true or false, and what it is where it is absent or null.

    Raises:
        ValueError: It is neither.
    """
    value = settings.get(key)
    if value is None:
        return absent
    if not isinstance(value, bool):
        raise ValueError(f"its {key} is {value!r}; true and false are read")
    return value


def check_part(name: str, found: str, known: tuple[str, ...]) -> None:
    """Refuse a part in a type that its layout does not store it in: read as another one, it would mean other numbers.

    Raises:
        ValueError: It is of another type.
    """
    if found not in known:
        raise ValueError(
            f"its {name} is {found}, and {_read(known)}. "
            "Save it as its tool writes it, or take the checkpoint that it was made from"
        )


def check_numbers(name: str, shape: Shape) -> None:
    """Refuse numbers of a weight that are no table of rows and columns.

    Raises:
        ValueError: They have another number of axes, or are empty.
    """
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{name} has the shape {list(shape)}, and two axes that are not empty are read")


def check_shape(name: str, found: Shape | None, wanted: Shape, group: int) -> None:
    """Compare a part's shape with what the settings ask for.

    Raises:
        ValueError: It differs.
    """
    if found is not None and tuple(found) != wanted:
        raise ValueError(f"{name} has the shape {list(found)}, and groups of {group} inputs ask for {list(wanted)}")
