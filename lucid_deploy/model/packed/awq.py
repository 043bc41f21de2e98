"""The layout of AutoAWQ, version gemm.

``qweight`` int32 ``(in, out/8)`` and ``qzeros`` int32 ``(groups, out/8)``: the 4-bit numbers of eight outputs in a
word, from the lowest bits on those of outputs 0, 2, 4, 6, 1, 3, 5, 7; ``scales`` ``(groups, out)``. Published in
AutoAWQ's ``awq/utils/packing_utils.py``. The method's own factors of inputs are in the weights and norms already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec

from lucid_deploy.model.packed import gptq
from lucid_deploy.model.packed.weight import (
    SCALE_TYPES,
    WORD_TYPES,
    PackedWeight,
    Shape,
    check_group_size,
    check_shapes,
    count_blocks,
    group_inputs,
    read_settings,
    unpack_words,
)

if TYPE_CHECKING:
    import torch

# gptqmodel writes both methods with the same keys, and transformers has them too; the others are AutoAWQ's.
_WITHOUT_EFFECT = (gptq.WITHOUT_EFFECT - {"backend", "version"}) | {
    *("do_fuse", "fuse_max_seq_len", "ignore", "modules_to_fuse"),
    *("desc_act", "pack_dtype", "static_groups", "sym"),
}
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word the number of each of eight outputs lies


class _Settings(msgspec.Struct, kw_only=True, frozen=True):
    bits: Literal[4] | None = None
    w_bit: Literal[4] | None = None  # older name
    group_size: int | None = None
    q_group_size: int | None = None  # older name
    version: str = "gemm"
    format: str = "gemm"
    checkpoint_format: str = "gemm"
    backend: str = ""
    method: Literal["awq"] = "awq"
    zero_point: bool = True
    dynamic: dict[str, Any] = {}


@dataclass(frozen=True)
class AwqLayout:
    """Weights of AutoAWQ, see :class:`~lucid_deploy.model.packed.weight.PackedLayout`.

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
        """Read ``quantization_config``; raise ValueError where it is not supported."""
        given = read_settings(settings, _Settings, _WITHOUT_EFFECT)
        if given.backend == "llm-awq":  # then transformers reads another layout, whatever the version
            raise ValueError("backend llm-awq is not supported; AutoAWQ's gemm is")
        for version in (given.version, given.format, given.checkpoint_format):
            if version.lower() != "gemm":
                raise ValueError(f"version {version!r} is not supported; gemm is")
        if given.dynamic:
            raise ValueError("dynamic, which gives layers settings of their own, is not supported")
        if not given.zero_point:
            raise ValueError("zero_point is false, for which the layout gemm has no tensors")
        sizes = {size for size in (given.group_size, given.q_group_size) if size is not None}
        if (given.bits or given.w_bit) is None or len(sizes) != 1:
            raise ValueError("bits or group_size is missing, or group_size and q_group_size differ")
        return cls(check_group_size(sizes.pop()))

    def shape(self, shapes: dict[str, Shape]) -> tuple[int, int]:
        width, words = shapes["qweight"]
        groups = count_blocks(width, group_inputs(width, self.group_size))
        check_shapes(shapes, {"scales": [(groups, words * 8)], "qzeros": [(groups, words)]})
        return words * 8, width

    def read(self, parts: dict[str, torch.Tensor]) -> PackedWeight:
        codes, zeros = (self._in_order(parts[name]).mT.contiguous() for name in ("qweight", "qzeros"))
        group = group_inputs(codes.shape[1], self.group_size)
        return PackedWeight(codes, zeros, parts["scales"].mT.contiguous(), 4, group)

    @staticmethod
    def _in_order(words: torch.Tensor) -> torch.Tensor:
        """``(rows, out/8)`` to uint8 ``(rows, out)``."""
        return unpack_words(words, 4).unflatten(-1, (-1, 8))[..., list(_PLACES)].flatten(-2)
