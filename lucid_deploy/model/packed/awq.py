"""The layout of AutoAWQ, version gemm.

``qweight`` int32 ``(in, out/8)`` and ``qzeros`` int32 ``(groups, out/8)``: the 4-bit numbers of eight outputs in a
word, from the lowest bits on those of outputs 0, 2, 4, 6, 1, 3, 5, 7; ``scales`` ``(groups, out)``. Published in
AutoAWQ's ``awq/utils/packing_utils.py``. The method's own factors of inputs are in the weights and norms already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lucid_deploy.model.packed import gptq
from lucid_deploy.model.packed.weight import (
    SCALE_TYPES,
    WORD_TYPES,
    PackedWeight,
    Shape,
    check_keys,
    check_method,
    check_shape,
    count_groups,
    group_inputs,
    read_bits,
    read_switch,
    unpack_words,
)

if TYPE_CHECKING:
    import torch

# GPTQModel writes both methods with the same keys, and transformers has them too; the others are AutoAWQ's.
_KEYS = gptq.KEYS | {"do_fuse", "fuse_max_seq_len", "ignore", "modules_to_fuse", "q_group_size", "w_bit", "zero_point"}
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word the number of each of eight outputs lies


@dataclass(frozen=True)
class AwqLayout:
    """See :class:`~lucid_deploy.model.packed.weight.PackedLayout`.

    Attributes:
        group_size: Inputs of a group; −1: a whole row.
    """

    group_size: int
    name = "awq"
    inputs = None
    bits = 4
    scheme = "int4"
    required = ("qweight", "qzeros", "scales")
    optional = ()
    types: ClassVar = {"qweight": WORD_TYPES, "qzeros": WORD_TYPES, "scales": SCALE_TYPES}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> AwqLayout:
        """Read ``quantization_config``.

        Raises:
            ValueError: Settings that are not computed here.
        """
        check_keys(settings, _KEYS)
        check_method(settings, cls.name)
        if settings.get("backend") == "llm-awq":  # then transformers takes its layout, whatever the version says
            raise ValueError("its backend is 'llm-awq', whose layout is not read; AutoAWQ's gemm is")
        for key in ("version", "format", "checkpoint_format"):
            version = str(settings.get(key) or "gemm").lower()
            if version != "gemm":
                raise ValueError(f"its {key} is {version!r}; gemm is read")
        if settings.get("dynamic"):
            raise ValueError("its key dynamic gives layers settings of their own, which are not read")
        read_bits(_either(settings, "bits", "w_bit"), (4,))
        if not read_switch(settings, "zero_point", True):
            raise ValueError("its zero_point is false, for which the layout gemm has no tensors")
        group = _either(settings, "group_size", "q_group_size")
        if type(group) is not int or (group < 1 and group != -1):
            raise ValueError(f"its group_size is {group!r}")
        return cls(group)

    def shape(self, shapes: dict[str, Shape]) -> tuple[int, int]:
        width, words = shapes["qweight"]
        group = group_inputs(width, self.group_size)
        groups = count_groups(width, group)
        check_shape("scales", shapes["scales"], (groups, words * 8), group)
        check_shape("qzeros", shapes["qzeros"], (groups, words), group)
        return words * 8, width

    def read(self, parts: dict[str, torch.Tensor]) -> PackedWeight:
        codes, zeros = (self._in_order(parts[name]).mT.contiguous() for name in ("qweight", "qzeros"))
        group = group_inputs(codes.shape[1], self.group_size)
        return PackedWeight(codes, zeros, parts["scales"].mT.contiguous(), 4, group)

    @staticmethod
    def _in_order(words: torch.Tensor) -> torch.Tensor:
        """``(rows, out/8)`` to uint8 ``(rows, out)``."""
        return unpack_words(words, 4).unflatten(-1, (-1, 8))[..., list(_PLACES)].flatten(-2)


def _either(settings: dict[str, Any], key: str, older: str) -> Any:
    """Return a setting that has two names, of which one may be left out.

    Raises:
        ValueError: They differ.
    """
    value, other = settings.get(key), settings.get(older)
    if value is not None and other is not None and value != other:
        raise ValueError(f"its {key} is {value!r} and its {older} {other!r}, which mean the same")
    return other if value is None else value
