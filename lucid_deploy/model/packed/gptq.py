"""The layout of AutoGPTQ and gptqmodel.

``qweight`` int32 ``(in·bits/32, out)``, inputs packed lowest bits first; ``scales`` ``(groups, out)``; ``qzeros`` int32
``(groups, out·bits/32)``; ``g_idx`` int32 ``(in)``, the group of each input. Format ``gptq`` (the first, and the
default) stores zero points less one; ``gptq_v2`` as they are. Published in AutoGPTQ's ``qlinear_cuda_old.py`` and
gptqmodel's ``convert_gptq_v1_to_v2_format_module``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lucid_deploy.model.packed.weight import (
    INDEX_TYPES,
    SCALE_TYPES,
    WORD_TYPES,
    PackedWeight,
    Shape,
    check_keys,
    check_method,
    check_order,
    check_shape,
    count_groups,
    group_inputs,
    read_bits,
    read_switch,
    unpack_words,
)

if TYPE_CHECKING:
    import torch

# Keys of AutoGPTQ, GPTQModel and transformers that are read here, or say how numbers were found or are to be computed.
KEYS = frozenset(
    """
    act_group_aware backend batch_size bits block_name_to_quantize cache_block_outputs checkpoint_format
    damp_auto_increment damp_percent dataset desc_act disable_exllama dynamic exllama_config format group_size
    is_marlin_format lm_head
    max_input_length meta method model_file_base_name model_name_or_path model_seqlen module_name_preceding_first_block
    modules_in_block_to_quantize modules_to_not_convert mse pack_dtype pad_token_id quant_method static_groups sym
    tokenizer true_sequential use_cuda_fp16 use_exllama version
    """.split()  # noqa: SIM905 (a table)
)


@dataclass(frozen=True)
class GptqLayout:
    """See :class:`~lucid_deploy.model.packed.weight.PackedLayout`.

    Attributes:
        bits: Of an element.
        group_size: Inputs of a group; −1: a whole row.
        zeros_less_one: Whether zero points are stored less one.
        symmetric: Whether the settings say that every zero point is the middle of the range.
        ordered: Whether the groups of inputs are those that ``g_idx`` says alone.
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
        """Read ``quantization_config``.

        Raises:
            ValueError: Settings that are not computed here.
        """
        check_keys(settings, KEYS)
        check_method(settings, cls.name)
        named = [settings[key] for key in ("checkpoint_format", "format") if settings.get(key) is not None]
        forms = set(map(str, named)) or {"gptq"}
        form = min(forms)
        if len(forms) > 1 or form not in ("gptq", "gptq_v2"):
            raise ValueError(f"its checkpoint_format is {' and '.join(map(repr, forms))}; gptq or gptq_v2 is read")
        if settings.get("is_marlin_format"):
            raise ValueError("its is_marlin_format is true, and that layout is not read")
        if settings.get("dynamic"):
            raise ValueError("its key dynamic gives layers settings of their own, which are not read")
        if settings.get("pack_dtype", "int32") != "int32":
            raise ValueError(f"its pack_dtype is {settings['pack_dtype']!r}; int32 is read")
        bits, group = read_bits(settings.get("bits"), (4, 8)), settings.get("group_size", -1)
        if type(group) is not int or (group < 1 and group != -1):
            raise ValueError(f"its group_size is {group!r}")
        ordered = read_switch(settings, "desc_act", False) and not read_switch(settings, "static_groups", False)
        return cls(bits, group, form == "gptq", read_switch(settings, "sym", False), ordered and group != -1)

    def shape(self, shapes: dict[str, Shape]) -> tuple[int, int]:
        packed, out = shapes["qweight"]
        width = packed * 32 // self.bits
        group = self._group(width)
        groups = count_groups(width, group)
        check_shape("scales", shapes["scales"], (groups, out), group)
        check_shape("qzeros", shapes["qzeros"], (groups, -(-out * self.bits // 32)), group)
        check_shape("g_idx", shapes.get("g_idx"), (width,), group)
        return out, width

    def read(self, parts: dict[str, torch.Tensor]) -> PackedWeight:

        codes = unpack_words(parts["qweight"].mT, self.bits)  # (out, in)
        out, width = codes.shape
        group = self._group(width)
        cause, remedy = "desc_act, g_idx", "desc_act=False or static_groups=True"
        check_order(parts.get("g_idx"), width, group, cause, remedy)
        zeros = unpack_words(parts["qzeros"], self.bits)[:, :out].mT
        if self.zeros_less_one:
            if (zeros == (1 << self.bits) - 1).any():
                raise ValueError(
                    f"it has zero points that are stored as {(1 << self.bits) - 1} in the format gptq, which may mean "
                    "0 or one more than the range has. Save it in the format gptq_v2"
                )
            zeros = zeros + 1
        self._check_symmetric(zeros)
        return PackedWeight(codes, zeros.contiguous(), parts["scales"].mT.contiguous(), self.bits, group)

    def _check_symmetric(self, zeros: torch.Tensor) -> None:
        """Kernels for symmetric weights take the middle of the range, and others the zero points that are stored.

        Raises:
            ValueError: They differ, as where a file in one format says that it is in the other.
        """
        half = 1 << (self.bits - 1)
        other = zeros[zeros != half]
        if self.symmetric and len(other):
            raise ValueError(
                f"its sym is true, which means the zero point {half}, and by its format "
                f"({'gptq' if self.zeros_less_one else 'gptq_v2'}) {int(other[0])} is stored: programs differ in which "
                "of them they take. Set checkpoint_format and sym to what its tool wrote"
            )

    def _group(self, width: int) -> int:
        return group_inputs(width, self.group_size)
