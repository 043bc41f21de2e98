"""The layouts of compressed-tensors with whole numbers: ``pack-quantized`` and ``int-quantized``.

``pack-quantized``: ``weight_packed`` int32 ``(out, in·bits/32)``, each number with 2^(bits−1) added, lowest bits
first; ``weight_scale`` ``(out, groups)``; ``weight_shape`` ``[out, in]``; ``weight_zero_point`` int32
``(out·bits/32, groups)``, packed along the outputs, where weights are not symmetric. ``int-quantized``: ``weight`` int8
``(out, in)``, and scale and zero point as int8. Published in compressed-tensors' ``compressors/``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lucid_deploy.model.packed.weight import (
    INDEX_TYPES,
    SCALE_TYPES,
    WORD_TYPES,
    PackedWeight,
    Shape,
    check_keys,
    check_order,
    count_groups,
    group_inputs,
    read_switch,
    unpack_words,
)

if TYPE_CHECKING:
    import torch

_FORMATS = ("pack-quantized", "int-quantized")
_STRATEGIES = ("group", "channel", "tensor")
# Keys that are read here, or say how numbers were found or are to be computed.
_KEYS = frozenset(
    """
    config_groups dequantize format global_compression_ratio ignore kv_cache_scheme quant_method quantization_status
    run_compressed sparsity_config transform_config use_optimized_inference version
    """.split()  # noqa: SIM905 (a table)
)
_GROUP_KEYS = frozenset({"targets", "weights", "input_activations", "output_activations", "format"})
WEIGHT_KEYS = frozenset(
    """
    actorder block_structure dynamic group_size num_bits observer observer_kwargs scale_dtype strategy symmetric type
    zp_dtype
    """.split()  # noqa: SIM905 (a table)
)


def read_group(settings: dict[str, Any], forms: tuple[str, ...]) -> dict[str, Any]:
    """Return the one group of ``quantization_config``, whose format is one of those given.

    Raises:
        ValueError: Settings that are not computed here.
    """
    form, groups = settings.get("format"), settings.get("config_groups") or {}
    check_keys(settings, _KEYS)
    if form not in forms:
        raise ValueError(f"its format is {form!r}; {' and '.join(forms)} are read")
    if settings.get("kv_cache_scheme"):
        raise ValueError("its kv_cache_scheme rounds the cache, which is not computed so here")
    if settings.get("transform_config") not in (None, {}, {"config_groups": {}}):
        raise ValueError("its transform_config turns weights and inputs, which is not computed so here")
    sparsity = settings.get("sparsity_config") or {}
    if not isinstance(sparsity, dict):
        raise ValueError(f"its sparsity_config is {sparsity!r}; an object is read")
    if sparsity.get("format", "dense") != "dense":
        raise ValueError("its sparsity_config stores weights with zeros left out, which is not read")
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
        raise ValueError(f"its config_groups are {groups!r}; an object with one group, an object too, is read")
    if len(groups) != 1:
        raise ValueError(f"it has {len(groups)} config_groups; one is read")
    group: dict[str, Any]
    (group,) = groups.values()
    check_keys(group, _GROUP_KEYS, "config_groups'")
    for part in ("weights", "input_activations"):
        if not isinstance(group.get(part) or {}, dict):
            raise ValueError(f"its config_groups' {part} are {group[part]!r}; an object is read")
    if group.get("format") not in (None, form):
        raise ValueError(f"its format is {form!r}, and that of its config_groups {group['format']!r}")
    return group


def _is_ordered(actorder: Any) -> bool:
    """Say whether groups are those of ``weight_g_idx``: so with group, also called dynamic and true.

    Raises:
        ValueError: Another order than these, and weight or static, with which groups are of neighbours.
    """
    if actorder in ("group", "dynamic") or actorder is True:
        return True
    if actorder not in (None, "weight", "static") and actorder is not False:
        raise ValueError(f"its actorder is {actorder!r}; weight and static are read")
    return False


@dataclass(frozen=True)
class CompressedLayout:
    """See :class:`~lucid_deploy.model.packed.weight.PackedLayout`.

    Attributes:
        bits: Of an element.
        strategy: ``group``, ``channel`` or ``tensor``: what shares a scale.
        group_size: Inputs of a group, for ``group``.
        is_packed: Whether numbers are in words of int32.
        symmetric: Whether there are no zero points.
        ordered: Whether the groups of inputs are those that ``weight_g_idx`` says alone.
    """

    bits: int
    strategy: str
    group_size: int
    is_packed: bool
    symmetric: bool
    ordered: bool = False
    name = "compressed-tensors"
    inputs = None

    @property
    def scheme(self) -> str:
        return f"int{self.bits}"

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> CompressedLayout:
        """Read ``quantization_config``.

        Raises:
            ValueError: Settings that are not computed here.
        """
        form, group = settings.get("format"), read_group(settings, _FORMATS)
        if group.get("input_activations") or group.get("output_activations"):
            raise ValueError(
                "it rounds inputs or outputs of layers too (input_activations), which is not computed as it says. "
                "Checkpoints with quantized weights alone (W4A16, W8A16) are read"
            )
        weights = group.get("weights") or {}
        check_keys(weights, WEIGHT_KEYS, "weights'")
        bits, strategy = weights.get("num_bits"), weights.get("strategy")
        known = (8,) if form == "int-quantized" else (4, 8)
        if weights.get("type") != "int" or type(bits) is not int or bits not in known:  # 4.0 and True are no bits
            raise ValueError(f"its weights are {weights.get('type')!r} of {bits!r} bits; int of 4 and 8 bits are read")
        if strategy not in _STRATEGIES:
            raise ValueError(f"its strategy is {strategy!r}; {', '.join(_STRATEGIES)} are read")
        if weights.get("dynamic"):
            raise ValueError(f"its weights' dynamic is {weights['dynamic']!r}; false is read")
        size = weights.get("group_size") if strategy == "group" else -1
        if type(size) is not int or (strategy == "group" and size < 1):
            raise ValueError(f"its group_size is {size!r}")
        ordered = strategy == "group" and _is_ordered(weights.get("actorder"))
        return cls(bits, strategy, size, form == "pack-quantized", read_switch(weights, "symmetric", True), ordered)

    @property
    def required(self) -> tuple[str, ...]:
        numbers = ("weight_packed", "weight_shape") if self.is_packed else ("weight",)
        order = ("weight_g_idx",) if self.ordered else ()
        return (*numbers, "weight_scale", *(() if self.symmetric else ("weight_zero_point",)), *order)

    @property
    def optional(self) -> tuple[str, ...]:
        return ("weight_g_idx",)

    @property
    def types(self) -> dict[str, tuple[str, ...]]:
        """See the protocol; zero points are packed in int32, or numbers of int8 as those of int-quantized are."""
        return {
            "weight": ("I8",),
            "weight_packed": WORD_TYPES,
            "weight_shape": INDEX_TYPES,
            "weight_scale": SCALE_TYPES,
            "weight_zero_point": ("I8", *WORD_TYPES) if self.is_packed and self.strategy != "tensor" else ("I8",),
            "weight_g_idx": INDEX_TYPES,
        }

    def shape(self, shapes: dict[str, Shape]) -> tuple[int, int]:
        """See the protocol; of packed numbers the width is that of their words."""
        if self.is_packed:
            out, words = shapes["weight_packed"]
            width = words * 32 // self.bits
        else:
            out, width = shapes["weight"]
        groups = count_groups(width, self._group(width))
        by_strategy: dict[str, list[Shape]] = {
            "group": [(out, groups)],
            "channel": [(out, 1), (out,)],
            "tensor": [(), (1,), (1, 1)],
        }
        scales = by_strategy[self.strategy]
        packed: list[Shape] = (
            [(-(-out * self.bits // 32), groups)] if self.is_packed and self.strategy != "tensor" else []
        )
        allowed: dict[str, list[Shape]] = {
            "weight_scale": scales,
            "weight_zero_point": [*packed, *scales],
            "weight_shape": [(2,)],
            "weight_g_idx": [(width,)],
        }
        for part, wanted in allowed.items():
            if part in shapes and tuple(shapes[part]) not in wanted:
                raise ValueError(
                    f"{part} has the shape {list(shapes[part])}, and the strategy {self.strategy} asks for "
                    f"{' or '.join(str(list(shape)) for shape in wanted)}"
                )
        return out, width

    def read(self, parts: dict[str, torch.Tensor]) -> PackedWeight:
        import torch

        half = 1 << (self.bits - 1)
        if self.is_packed:
            out, width = (int(size) for size in parts["weight_shape"])
            codes = unpack_words(parts["weight_packed"], self.bits)
            if codes.shape != (out, width):
                raise ValueError(f"its weight_shape is [{out}, {width}], and its numbers are {list(codes.shape)}")
        else:
            codes = (parts["weight"].to(torch.int16) + half).to(torch.uint8)
            out, width = codes.shape
        group = self._group(width)
        cause, remedy = "actorder group, weight_g_idx", "actorder static or none"
        check_order(parts.get("weight_g_idx"), width, group, cause, remedy)
        groups = count_groups(width, group)
        scales = parts["weight_scale"].reshape(-1, groups).expand(out, groups).contiguous()
        return PackedWeight(codes, self._zeros(parts, out, groups), scales, self.bits, group)

    def _zeros(self, parts: dict[str, torch.Tensor], out: int, groups: int) -> torch.Tensor:
        """Return the zero points, as numbers are: uint8 ``(out, groups)``, with half the range added."""
        import torch

        half = 1 << (self.bits - 1)
        if self.symmetric:
            return torch.full((out, groups), half, dtype=torch.uint8)
        stored = parts["weight_zero_point"]
        if self.is_packed and self.strategy != "tensor" and stored.dtype == torch.int32:
            if len(stored) != -(-out * self.bits // 32):
                raise ValueError(f"its weight_zero_point has {len(stored)} rows of words for {out} outputs")
            return unpack_words(stored.mT.contiguous(), self.bits)[:, :out].mT.contiguous()
        moved = stored.reshape(-1, groups).to(torch.int16)  # int8 does not hold half of its range
        if len(moved) not in (1, out):
            raise ValueError(f"its weight_zero_point has {len(moved)} rows for {out} outputs")
        if ((moved < -half) | (moved >= half)).any():
            raise ValueError(f"its weight_zero_point has numbers outside {-half} to {half - 1}, the range of its bits")
        return (moved + half).to(torch.uint8).expand(out, groups).contiguous()

    def _group(self, width: int) -> int:
        return group_inputs(width, self.group_size)
