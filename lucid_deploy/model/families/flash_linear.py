"""flash-linear-attention's models: DeltaNet (arXiv 2406.06484) and, with decay, gated DeltaNet (arXiv 2412.06464).

Tensor names differ from Llama's, the MLP's width is given by a ratio, and the layers listed in ``attn`` use attention.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Any, ClassVar, Literal

import msgspec

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import LucidConfig, Positive, Size
from lucid_deploy.model.config_file import Whole, checked
from lucid_deploy.model.families.family import FULL, LINEAR, SLIDING, Family, StoredParameter
from lucid_deploy.model.layers.delta_settings import check_kernel

_STORED = {
    "model.embed_tokens.": "model.embeddings.",
    ".input_layernorm.": ".attn_norm.",
    ".post_attention_layernorm.": ".mlp_norm.",
    ".linear_attn.": ".attn.",
    ".self_attn.": ".attn.",
}
# Llama's keys that these models do not have, or have under other names: refused, because they would take effect.
_FOREIGN = (
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "attention_bias",
    "mlp_bias",
    "sliding_window",
    "layer_types",
    "layer_kinds",
    "layer_settings",
)


class FlashKeys(msgspec.Struct, kw_only=True, frozen=True):
    """The supported keys that flash-linear-attention's models have in common."""

    norm_eps: Positive = 1e-6
    hidden_ratio: Size = 4
    num_heads: Size
    expand_v: Positive = 1.0
    conv_size: Whole = 4
    use_short_conv: bool = True
    use_gate: bool = False
    allow_neg_eigval: bool = False
    attn: Any = None
    attnres_block_size: None = None  # it would mix the residuals of layers
    conv_bias: bool = False


class AttentionKeys(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The object ``attn``: which layers use full or sliding-window attention, and their shape."""

    layers: list[Whole]
    num_heads: Size
    num_kv_heads: Size | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    window_size: Size | None = None
    rope_theta: Positive = 10000.0


class FlashLinearFamily(Family):
    """A model of flash-linear-attention: all layers are of one linear kind, except those that ``attn`` lists."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        (
            # They select kernels, and do not change results.
            "attn_mode",
            "fuse_norm",
            "fuse_swiglu",
            # They concern training only.
            "fuse_cross_entropy",
            "fuse_linear_cross_entropy",
            "use_l2warp",
            # A key that no layer of its code reads.
            "use_output_norm",
        )
    )

    def normalized(self, raw: dict[str, Any], where: str) -> dict[str, Any]:
        foreign = [key for key in (*_FOREIGN, "head_dim") if raw.get(key) is not None and key not in self.computed]
        if foreign:
            raise LucidError(
                f"{where}: {foreign[0]} is {raw[foreign[0]]!r}, a key that models of the family {self.model_type} do "
                "not have. Remove it, or correct model_type."
            )
        keys: Any = checked(raw, self.keys, where)
        plain = {**raw, "rms_norm_eps": keys.norm_eps}
        if raw.get("intermediate_size") is None and isinstance(raw.get("hidden_size"), int):
            inner = int(raw["hidden_size"] * keys.hidden_ratio * 2 / 3)
            plain["intermediate_size"] = 256 * -(-inner // 256)  # the library's own rounding
        attention = attention_keys(keys.attn, where)
        heads = keys.num_heads if attention is None else attention.num_heads
        plain |= {"num_attention_heads": heads, "num_key_value_heads": heads}
        if attention is not None:
            plain |= {"rope_theta": attention.rope_theta, "attention_bias": attention.qkv_bias}
            plain["num_key_value_heads"] = attention.num_kv_heads or heads
        return plain

    def layer_types(self, keys: Any, layers: int) -> list[str]:
        attention = attention_keys(keys.attn, "attn")
        if attention is None:
            return [LINEAR] * layers
        kind = FULL if attention.window_size is None else SLIDING
        return [kind if index in attention.layers else LINEAR for index in range(layers)]

    def configure(self, config: LucidConfig, keys: Any, where: str) -> LucidConfig:
        if keys.conv_bias:
            raise LucidError(f"{where}: conv_bias is true. Biases of short convolutions are not supported.")
        if keys.use_short_conv:
            check_kernel(keys.conv_size, "conv_size", where)
        attention = attention_keys(keys.attn, where)
        layers = [] if attention is None else attention.layers
        beyond = [index for index in layers if index >= config.num_hidden_layers]
        if beyond or len(set(layers)) < len(layers):
            what = f"layer {beyond[0]}" if beyond else "a layer twice"
            raise LucidError(
                f"{where}: attn.layers names {what}; it lists layers, counted from 0, of {config.num_hidden_layers} "
                "(num_hidden_layers)."
            )
        if layers and config.hidden_size % config.num_attention_heads:
            raise LucidError(
                f"{where}: hidden_size ({config.hidden_size}) is not a multiple of attn.num_heads "
                f"({config.num_attention_heads})."
            )
        settings = self.settings(config, keys, where)
        return dataclasses.replace(
            config,
            head_dim=config.hidden_size // config.num_attention_heads if layers else settings["key_width"],
            attention_output_bias=False,
            sliding_window=None if attention is None else attention.window_size,
            use_rope=config.use_rope and bool(layers),
            rope_layers=tuple(index in layers for index in range(config.num_hidden_layers)) if layers else (),
            layer_settings={self.linear_kind: settings},
        )

    @abstractmethod
    def settings(self, config: LucidConfig, keys: Any, where: str) -> dict[str, Any]:
        """Return the settings of its linear layers, see :mod:`~lucid_deploy.model.layers.delta_settings`."""

    def stored(self, name: str, config: LucidConfig) -> StoredParameter:
        for ours, theirs in _STORED.items():
            name = name.replace(ours, theirs)
        return StoredParameter(name)


def attention_keys(given: Any, where: str) -> AttentionKeys | None:
    """Return the checked settings in ``attn``; None: no layer uses attention."""
    if given is None or given == []:
        return None
    one = given[0] if isinstance(given, list) and len(given) == 1 else given
    if isinstance(one, list):
        raise LucidError(f"{where}: attn lists {len(one)} kinds of attention; more than one is not supported.")
    if not isinstance(one, dict):
        raise LucidError(f"{where}: attn must be an object, not {one!r}.")
    found = checked(one, AttentionKeys, f"{where}: attn")
    if found.qk_norm:
        raise LucidError(
            f"{where}: attn.qk_norm is true. Versions of flash-linear-attention differ in whether they compute it, so "
            "it is not supported."
        )
    return found if found.layers else None


def whole(value: float, what: str, where: str) -> int:
    """Return ``value``, a width times a factor, as an integer; raise a LucidError if it is not whole."""
    if not value.is_integer():  # nor is infinity, which the product may be
        raise LucidError(f"{where}: {what} is {value:g}, which is not a whole number.")
    return round(value)


class _DeltaKeys(FlashKeys, kw_only=True, frozen=True):
    expand_k: Positive = 1.0
    use_beta: bool = True
    qk_norm: Literal["l2"] = "l2"
    qk_activation: Literal["silu"] = "silu"


class _DeltaNet(FlashLinearFamily):
    model_type = "delta_net"
    architectures = ("DeltaNetForCausalLM",)
    keys = _DeltaKeys
    linear_kind = "delta"
    about = "flash-linear-attention's DeltaNet layers; the layers listed in attn use full or sliding-window attention"

    def settings(self, config: LucidConfig, keys: Any, where: str) -> dict[str, Any]:
        widths = {
            name: whole(config.hidden_size * factor, f"hidden_size · {name}", where)
            for name, factor in (("expand_k", keys.expand_k), ("expand_v", keys.expand_v))
        }
        for name, width in widths.items():
            if width % keys.num_heads:
                raise LucidError(
                    f"{where}: hidden_size · {name} ({width}) is not a multiple of num_heads ({keys.num_heads})."
                )
        return {
            "key_heads": keys.num_heads,
            "value_heads": keys.num_heads,
            "key_width": widths["expand_k"] // keys.num_heads,
            "value_width": widths["expand_v"] // keys.num_heads,
            "kernel": keys.conv_size if keys.use_short_conv else 0,
            "gate": "silu" if keys.use_gate else "none",
            "has_beta": keys.use_beta,
            "negative_eigenvalues": keys.allow_neg_eigval,
        }


class _GatedKeys(FlashKeys, kw_only=True, frozen=True):
    expand_v: Positive = 2.0
    use_gate: bool = True
    head_dim: Size = 256
    num_v_heads: Size | None = None
    output_gate_activation: Literal["swish", "silu", "sigmoid"] = "swish"


class _GatedDeltaNet(FlashLinearFamily):
    model_type = "gated_deltanet"
    architectures = ("GatedDeltaNetForCausalLM",)
    keys = _GatedKeys
    linear_kind = "gated_delta"
    about = "flash-linear-attention's gated DeltaNet layers; the layers listed in attn use attention, as in delta_net"

    def settings(self, config: LucidConfig, keys: Any, where: str) -> dict[str, Any]:
        values = keys.num_v_heads or keys.num_heads
        if values % keys.num_heads:
            raise LucidError(f"{where}: num_v_heads ({values}) is not a multiple of num_heads ({keys.num_heads}).")
        return {
            "key_heads": keys.num_heads,
            "value_heads": values,
            "key_width": keys.head_dim,
            "value_width": whole(keys.head_dim * keys.expand_v, "head_dim · expand_v", where),
            "kernel": keys.conv_size if keys.use_short_conv else 0,
            "gate": keys.output_gate_activation.replace("swish", "silu") if keys.use_gate else "none",
            "negative_eigenvalues": keys.allow_neg_eigval,
        }


DELTA_NET, GATED_DELTANET = _DeltaNet(), _GatedDeltaNet()
