"""Qwen3-Next and Qwen3.5's text models: the gated delta rule, gated attention, and mixtures of experts.

Attention rotates a part of each head. Qwen3.5 stores the projections of its delta layers apart.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import msgspec

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import LucidConfig, Mixture, Positive, Size
from lucid_deploy.model.config_file import Flag, Names, Text, Whole
from lucid_deploy.model.config_keys import ROPE_BLOCKS
from lucid_deploy.model.families.family import FULL, LINEAR, SLIDING, Family, StoredParameter
from lucid_deploy.model.layers.delta_settings import check_kernel, delta_settings

_FACTOR = "partial_rotary_factor"
# How positions of images are divided among frequencies. A text has one position a token, so they say nothing.
_OF_IMAGES = ("mrope_section", "mrope_interleaved")


class LinearKeys(msgspec.Struct, kw_only=True, frozen=True):
    """What Qwen's layers of the gated delta rule are, and which layers they are."""

    layer_types: Names | None = None
    full_attention_interval: Size = 4
    partial_rotary_factor: Positive = 0.25
    linear_conv_kernel_dim: Size = 4
    linear_key_head_dim: Size = 128
    linear_value_head_dim: Size = 128
    linear_num_key_heads: Size = 16
    linear_num_value_heads: Size = 32
    attn_output_gate: Flag = True
    output_gate_type: Text = "swish"


class _ExpertKeys(LinearKeys, kw_only=True, frozen=True):
    num_experts: Whole = 256
    num_experts_per_tok: Size = 8
    moe_intermediate_size: Size = 512
    shared_expert_intermediate_size: Size = 512


class _Keys(_ExpertKeys, kw_only=True, frozen=True):
    num_experts: Whole = 512
    num_experts_per_tok: Size = 10
    norm_topk_prob: Flag = True
    decoder_sparse_step: Size = 1
    mlp_only_layers: list[Whole] = []


class QwenHybrid(Family):
    """What Qwen3-Next and Qwen3.5 have in common."""

    linear_kind = "gated_delta"
    # In published configurations, and passed over by its code: how serving engines keep states, and the heads that
    # predict further tokens.
    ignored: ClassVar[frozenset[str]] = frozenset(
        ("mamba_ssm_dtype", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings")
    )
    unused_tensors: ClassVar[tuple[str, ...]] = (
        "mtp.",
    )  # heads that predict further tokens; its code passes over them too

    def normalized(self, raw: dict[str, Any], where: str) -> dict[str, Any]:
        """How much of each head is rotated stands beside the block of the rotation."""
        plain = {key: value for key, value in raw.items() if key != _FACTOR or value is not None}
        for name in ROPE_BLOCKS:
            block = raw.get(name)
            if isinstance(block, dict) and _FACTOR in block:
                plain[name] = {key: value for key, value in block.items() if key != _FACTOR}
                if plain.setdefault(_FACTOR, block[_FACTOR]) != block[_FACTOR]:
                    raise LucidError(f"{where}: {_FACTOR} is {plain[_FACTOR]!r}, and {block[_FACTOR]!r} in {name}.")
        if plain.get(_FACTOR, raw.get(_FACTOR, 0)) is None:
            raise LucidError(
                f"{where}: {_FACTOR} is null, for which transformers rotates the whole of each head, and 0.25 of it "
                "where the key is missing. Say a number."
            )
        return plain

    def layer_types(self, keys: Any, layers: int) -> list[str]:
        if keys.layer_types is not None:
            return list(keys.layer_types)
        return [LINEAR if (index + 1) % keys.full_attention_interval else FULL for index in range(layers)]

    def configure(self, config: LucidConfig, keys: Any, where: str) -> LucidConfig:
        if keys.partial_rotary_factor > 1:
            raise LucidError(f"{where}: {_FACTOR} is {keys.partial_rotary_factor:g}; a head is rotated once at most.")
        if keys.linear_num_value_heads % keys.linear_num_key_heads:
            raise LucidError(
                f"{where}: linear_num_value_heads ({keys.linear_num_value_heads}) is not a multiple of "
                f"linear_num_key_heads ({keys.linear_num_key_heads})."
            )
        if self.linear_kind in config.layer_settings:
            raise LucidError(
                f"{where}: layer_settings has {self.linear_kind}, which this family's linear_* keys say; leave it out."
            )
        check_kernel(keys.linear_conv_kernel_dim, "linear_conv_kernel_dim", where)
        _check_variants(config, keys, where)
        settings = {
            "key_heads": keys.linear_num_key_heads,
            "value_heads": keys.linear_num_value_heads,
            "key_width": keys.linear_key_head_dim,
            "value_width": keys.linear_value_head_dim,
            "kernel": keys.linear_conv_kernel_dim,
            "gate": "silu",
        }
        kinds = config.layer_kinds or self.layer_types(keys, config.num_hidden_layers)
        rotated = int(config.head_dim * keys.partial_rotary_factor)
        if rotated % 2 and config.use_rope:
            raise LucidError(
                f"{where}: {_FACTOR} ({keys.partial_rotary_factor:g}) of head_dim ({config.head_dim}) is {rotated}; "
                "rotary positions need an even part of each head."
            )
        return dataclasses.replace(
            config,
            qk_norm="before_rope",
            attention_gate=True,
            rotary_width=rotated if 0 < rotated < config.head_dim else None,
            # A part below one element rotates nothing, as in its code.
            rope_layers=tuple(rotated > 0 and kind not in (LINEAR, self.linear_kind) for kind in kinds),
            layer_settings={**config.layer_settings, self.linear_kind: settings},
        )

    def stored(self, name: str, config: LucidConfig) -> StoredParameter:
        """Norms scale by 1 + w, and queries lie beside the gates of their heads."""
        if ".linear_attn." in name:
            return self.stored_linear(name, config)
        if ".experts." in name:
            from lucid_deploy.model.experts import stored_experts  # with PyTorch, which running needs not

            return stored_experts(name, config)
        for part, rows in (("q_proj", (0, config.head_dim)), ("g_proj", (config.head_dim, 2 * config.head_dim))):
            if f".self_attn.{part}." in name:
                return StoredParameter(name.replace(part, "q_proj"), rows, config.num_attention_heads)
        return StoredParameter(name, plus=1.0 if "norm." in name else 0.0)

    def stored_linear(self, name: str, config: LucidConfig) -> StoredParameter:
        """Return where a parameter of a layer of the gated delta rule lies."""
        settings = delta_settings(config, self.linear_kind)
        keys, values = settings.key_channels, settings.value_channels
        convolved = {"q": (0, keys), "k": (keys, 2 * keys), "v": (2 * keys, 2 * keys + values)}
        for part, rows in convolved.items():
            if f".{part}_conv1d." in name:
                return StoredParameter(name.replace(f"{part}_conv1d", "conv1d"), rows)
        for ours, theirs in ((".o_norm.", ".norm."), (".o_proj.", ".out_proj.")):
            name = name.replace(ours, theirs)
        return StoredParameter(name)


def _check_variants(config: LucidConfig, keys: LinearKeys, where: str) -> None:
    """Refuse what other engines read from such a configuration, and what its own code does not have."""
    if SLIDING in (keys.layer_types or ()) and not config.is_lucid:
        raise LucidError(
            f"{where}: layer_types names {SLIDING}, which Qwen's code does not have in this family; supported are "
            f"{FULL} and {LINEAR}."
        )
    if config.mlp_bias:
        raise LucidError(f"{where}: mlp_bias is true, which is not supported: Qwen's code makes no biases in its MLPs.")
    if config.hidden_act != "silu":
        raise LucidError(f"{where}: hidden_act {config.hidden_act!r} is not supported in this family; only silu is.")
    if not keys.attn_output_gate:
        raise LucidError(
            f"{where}: attn_output_gate is false, which is not supported: Qwen's code gates attention always."
        )
    if keys.output_gate_type not in ("swish", "silu"):
        raise LucidError(f"{where}: output_gate_type {keys.output_gate_type!r} is not supported; only swish is.")


_OF_TRAINING = frozenset(("output_router_logits", "router_aux_loss_coef"))  # of the router


def _with_experts(config: LucidConfig, keys: _ExpertKeys, layers: tuple[bool, ...], normalized: bool) -> LucidConfig:
    if not any(layers):
        return config
    sizes = keys.num_experts, keys.num_experts_per_tok, keys.moe_intermediate_size, keys.shared_expert_intermediate_size
    return dataclasses.replace(config, mixture=Mixture(*sizes, normalized), mixture_layers=layers)


class _Qwen3Next(QwenHybrid):
    model_type = "qwen3_next"
    architectures = ("Qwen3NextForCausalLM",)
    defaults: ClassVar = {"num_key_value_heads": 2, "head_dim": 256, "max_position_embeddings": 32768}
    keys = _Keys
    ignored = QwenHybrid.ignored | _OF_TRAINING
    about = "layers of the gated delta rule, gated attention that rotates a part of each head, mixtures of experts"

    def configure(self, config: LucidConfig, keys: Any, where: str) -> LucidConfig:
        layers = tuple(
            bool(keys.num_experts) and index not in keys.mlp_only_layers and (index + 1) % keys.decoder_sparse_step == 0
            for index in range(config.num_hidden_layers)
        )
        return super().configure(_with_experts(config, keys, layers, keys.norm_topk_prob), keys, where)

    def stored_linear(self, name: str, config: LucidConfig) -> StoredParameter:
        """Each key head's queries, keys, values and gates lie together."""
        settings = delta_settings(config, self.linear_kind)
        shared = settings.value_heads // settings.key_heads
        key, value = settings.key_width, shared * settings.value_width
        places = {
            "q_proj": ("in_proj_qkvz", 0, key),
            "k_proj": ("in_proj_qkvz", key, 2 * key),
            "v_proj": ("in_proj_qkvz", 2 * key, 2 * key + value),
            "g_proj": ("in_proj_qkvz", 2 * key + value, 2 * key + 2 * value),
            "b_proj": ("in_proj_ba", 0, shared),
            "a_proj": ("in_proj_ba", shared, 2 * shared),
        }
        for part, (stored, start, end) in places.items():
            if f".{part}." in name:
                return StoredParameter(name.replace(part, stored), (start, end), settings.key_heads)
        return super().stored_linear(name, config)


class _Qwen35(QwenHybrid):
    model_type = "qwen3_5_text"
    architectures = ("Qwen3_5ForCausalLM",)
    defaults: ClassVar = {"num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 32768}
    keys = LinearKeys
    unused_tensors = ("mtp.", "model.visual.")  # as its code has it
    about = "Qwen3.5's text model without experts, as Qwen3-Next"

    def normalized(self, raw: dict[str, Any], where: str) -> dict[str, Any]:
        plain = super().normalized(raw, where)
        for name in ROPE_BLOCKS:
            if isinstance(plain.get(name), dict):
                plain[name] = {key: value for key, value in plain[name].items() if key not in _OF_IMAGES}
        return plain

    def stored_linear(self, name: str, config: LucidConfig) -> StoredParameter:
        settings = delta_settings(config, self.linear_kind)
        keys, values = settings.key_channels, settings.value_channels
        places = {"q_proj": (0, keys), "k_proj": (keys, 2 * keys), "v_proj": (2 * keys, 2 * keys + values)}
        for part, rows in places.items():
            if f".{part}." in name:
                return StoredParameter(name.replace(part, "in_proj_qkv"), rows)
        for ours, theirs in (("g_proj", "in_proj_z"), ("b_proj", "in_proj_b"), ("a_proj", "in_proj_a")):
            name = name.replace(f".{ours}.", f".{theirs}.")
        return super().stored_linear(name, config)


class _Qwen35Moe(_Qwen35):
    model_type = "qwen3_5_moe_text"
    architectures = ("Qwen3_5MoeForCausalLM",)
    # Without an MLP of the usual kind, its configuration names no width of one.
    defaults: ClassVar = {**_Qwen35.defaults, "num_key_value_heads": 2, "intermediate_size": 512}
    keys = _ExpertKeys
    ignored = QwenHybrid.ignored | _OF_TRAINING
    about = "Qwen3.5's text model with a mixture of experts in each layer"

    def configure(self, config: LucidConfig, keys: Any, where: str) -> LucidConfig:
        if not keys.num_experts:
            raise LucidError(f"{where}: num_experts is 0, and this family has experts in every layer.")
        layers = (True,) * config.num_hidden_layers
        return super().configure(_with_experts(config, keys, layers, True), keys, where)


QWEN3_NEXT, QWEN3_5_TEXT, QWEN3_5_MOE_TEXT = _Qwen3Next(), _Qwen35(), _Qwen35Moe()
