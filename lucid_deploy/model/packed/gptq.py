"""The layout of AutoGPTQ and gptqmodel.

``qweight`` int32 ``(in·bits/32, out)``, inputs packed lowest bits first; ``scales`` ``(groups, out)``; ``qzeros`` int32
``(groups, out·bits/32)``; ``g_idx`` int32 ``(in)``, the group of each input. Format ``gptq`` (the first, and the
default) stores zero points less one; ``gptq_v2`` as they are. Published in AutoGPTQ's ``qlinear_cuda_old.py`` and
gptqmodel's ``convert_gptq_v1_to_v2_format_module``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec

from lucid_deploy.model.packed.weight import (
    INDEX_TYPES,
    SCALE_TYPES,
    WORD_TYPES,
    PackedWeight,
    Shape,
    check_group_size,
    check_order,
    check_shapes,
    count_blocks,
    group_inputs,
    read_settings,
    unpack_words,
)

if TYPE_CHECKING:
    import torch

# Keys of AutoGPTQ, gptqmodel and transformers that say how the numbers were found or are to be computed.
WITHOUT_EFFECT = frozenset(
    """
    act_group_aware backend batch_size block_name_to_quantize cache_block_outputs damp_auto_increment damp_percent
    dataset disable_exllama exllama_config lm_head max_input_length meta model_file_base_name model_name_or_path
    model_seqlen module_name_preceding_first_block modules_in_block_to_quantize modules_to_not_convert mse pad_token_id
    quant_method tokenizer true_sequential use_cuda_fp16 use_exllama version
    """.split()  # noqa: SIM905 (a table)
)


class _Settings(msgspec.Struct, kw_only=True, frozen=True):
    bits: Literal[4, 8]
    group_size: int = -1
    format: Literal["gptq", "gptq_v2"] | None = None  # transformers' spelling of checkpoint_format
    checkpoint_format: Literal["gptq", "gptq_v2"] | None = None
    method: Literal["gptq"] = "gptq"  # gptqmodel's second spelling of quant_method
    sym: bool = False
    desc_act: bool = False
    static_groups: bool = False
    is_marlin_format: bool = False
    dynamic: dict[str, Any] = {}
    pack_dtype: Literal["int32"] = "int32"


@dataclass(frozen=True)
class GptqLayout:
    """Weights of AutoGPTQ and gptqmodel, see :class:`~lucid_deploy.model.packed.weight.PackedLayout`.

    Attributes:
        bits: Bits of an element.
        group_size: Inputs of a group; −1: a whole row.
        zeros_less_one: Whether zero points are stored less one.
        symmetric: Whether the settings say that every zero point is the middle of the range.
        ordered: Whether only ``g_idx`` says which inputs share a group.
    """

    bits: int
    group_size: int
    zeros_less_one: bool
    symmetric: bool = False
    ordered: bool = False
    name = "gptq"
    inputs = None
    optional = ("g_idx",)
    types: ClassVar = {"qweight": WORD_TYPES, "qzeros": WORD_TYPES, "scales": SCALE_TYPES, "g_idx": INDEX_TYPES}

    @property
    def scheme(self) -> str:
        return f"int{self.bits}"

    @property
    def required(self) -> tuple[str, ...]:
        return ("qweight", "qzeros", "scales", *(("g_idx",) if self.ordered else ()))

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> GptqLayout:
        """Read ``quantization_config``; raise ValueError where it is not supported."""
        given = read_settings(settings, _Settings, WITHOUT_EFFECT)
        if given.format and given.checkpoint_format and given.format != given.checkpoint_format:
            raise ValueError(f"format is {given.format!r} and checkpoint_format {given.checkpoint_format!r}")
        if given.is_marlin_format:
            raise ValueError("is_marlin_format is true, and the Marlin layout is not supported")
        if given.dynamic:
            raise ValueError("dynamic, which gives layers settings of their own, is not supported")
        group = check_group_size(given.group_size)
        ordered = given.desc_act and not given.static_groups and group != -1
        less_one = "gptq_v2" not in (given.format, given.checkpoint_format)
        return cls(given.bits, group, less_one, given.sym, ordered)

    def shape(self, shapes: dict[str, Shape]) -> tuple[int, int]:
        packed, out = shapes["qweight"]
        width = packed * 32 // self.bits
        groups = count_blocks(width, group_inputs(width, self.group_size))
        zeros = (groups, count_blocks(out * self.bits, 32))
        check_shapes(shapes, {"scales": [(groups, out)], "qzeros": [zeros], "g_idx": [(width,)]})
        return out, width

    def read(self, parts: dict[str, torch.Tensor]) -> PackedWeight:
        codes = unpack_words(parts["qweight"].mT, self.bits)  # (out, in)
        out, width = codes.shape
        group = group_inputs(width, self.group_size)
        check_order(parts.get("g_idx"), width, group, "desc_act=False or static_groups=True")
        zeros = unpack_words(parts["qzeros"], self.bits)[:, :out].mT  # (out, groups)
        if self.zeros_less_one:
            most = (1 << self.bits) - 1
            if (zeros == most).any():
                raise ValueError(
                    f"zero points are stored as {most} in the format gptq, which may mean 0 or {most + 1}. Save it in "
                    "the format gptq_v2"
                )
            zeros = zeros + 1
        # Kernels for symmetric weights take the middle of the range, other kernels the zero points that are stored.
        half = 1 << (self.bits - 1)
        other = zeros[zeros != half]
        if self.symmetric and len(other):
            raise ValueError(
                f"sym is true, which means the zero point {half}, but in its format "
                f"({'gptq' if self.zeros_less_one else 'gptq_v2'}) the stored zero point is {int(other[0])}. Correct "
                "checkpoint_format or sym"
            )
        return PackedWeight(codes, zeros.contiguous(), parts["scales"].mT.contiguous(), self.bits, group)
