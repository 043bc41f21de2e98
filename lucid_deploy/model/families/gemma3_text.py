"""Gemma 3, its text model: windows of a rotary base of their own, four norms a layer that scale by 1 + w."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.config_file import Names, Positive, Size
from lucid_deploy.model.families.family import FULL, SLIDING, Family, StoredParameter

if TYPE_CHECKING:
    from lucid_deploy.model.block import Layer


_KINDS = ("rope_type", "type")


class _Keys(msgspec.Struct, kw_only=True, frozen=True):
    query_pre_attn_scalar: Positive = 256.0
    sliding_window: Size | None = None
    sliding_window_pattern: Size = 6
    layer_types: Names | None = None
    rope_local_base_freq: Positive = 10000.0


class _Gemma3(Family):
    model_type = "gemma3_text"
    architectures = ("Gemma3ForCausalLM",)
    defaults: ClassVar = {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
        "rope_theta": 1e6,
        "hidden_act": "gelu_pytorch_tanh",
        "sliding_window": 4096,
    }
    keys = _Keys
    refused: ClassVar = {"mlp_bias": "Gemma's code makes no biases in its MLPs"}
    # Written by transformers, which reads the same under sliding_window_pattern; hidden_activation becomes hidden_act.
    ignored = frozenset(("_sliding_window_pattern", "hidden_activation"))
    about = "layers over a window with a rotary base of their own, four norms a layer, scaled embeddings"

    def normalized(self, raw: dict[str, Any], where: str) -> dict[str, Any]:
        plain = {**raw, "hidden_act": raw.get("hidden_activation") or "gelu_pytorch_tanh"}
        _check_spelling(raw, where)
        _check_ramp(raw, where)
        blocks = raw.get("rope_parameters")
        if not isinstance(blocks, dict) or not {FULL, SLIDING} & blocks.keys():
            return plain
        local = blocks.get(SLIDING) or {}
        if set(blocks) - {FULL, SLIDING} or not isinstance(local, dict) or set(local) - {"rope_type", "rope_theta"}:
            raise LucidError(
                f"{where}: rope_parameters is {blocks!r}, which is not supported for layers over a window."
            )
        if local.get("rope_type", "default") != "default":
            raise LucidError(
                f"{where}: rope_type {local['rope_type']!r} of layers over a window is not supported; only default is."
            )
        return {
            **plain,
            "rope_parameters": blocks.get(FULL) or {},
            "rope_local_base_freq": local.get("rope_theta", raw.get("rope_local_base_freq", 10000.0)),
        }

    def layer_types(self, keys: Any, layers: int) -> list[str]:
        if keys.layer_types is not None:
            return keys.layer_types
        return [SLIDING if (index + 1) % keys.sliding_window_pattern else FULL for index in range(layers)]

    def configure(self, config: LucidConfig, keys: Any, where: str) -> LucidConfig:
        return dataclasses.replace(
            config,
            qk_norm="before_rope",
            attention_scale=keys.query_pre_attn_scalar**-0.5,
            embedding_multiplier=math.sqrt(config.hidden_size),
            window_rope_theta=keys.rope_local_base_freq,
        )

    def stored(self, name: str, config: LucidConfig) -> StoredParameter:
        return StoredParameter(name, plus=1.0 if "norm." in name else 0.0)

    def layer(self, config: LucidConfig, index: int, implementation: str) -> Layer:
        from lucid_deploy.model.block import SandwichLayer

        return SandwichLayer(config, index, implementation)


def _check_spelling(raw: dict[str, Any], where: str) -> None:
    """Refuse what other families compute and transformers' Gemma 3 passes over: which was meant is not known.

    Raises:
        LucidError: ``rope_scaling`` names its kind ``type`` alone, or ``rope_parameters`` says something of all layers.
    """
    scaling, blocks = raw.get("rope_scaling"), raw.get("rope_parameters")
    if isinstance(scaling, dict) and scaling.get("rope_type") is None:
        kind = scaling.get("type") or "default"
        if kind != "default":
            raise LucidError(
                f"{where}: rope_scaling has type {kind!r} and no rope_type: transformers' Gemma 3 then scales nothing. "
                "If the model was trained with it, call the key rope_type; if not, remove rope_scaling."
            )
    if not isinstance(blocks, dict) or {FULL, SLIDING} & blocks.keys():
        return
    said = [key for key, value in blocks.items() if value is not None and (key not in _KINDS or value != "default")]
    if said:
        raise LucidError(
            f"{where}: rope_parameters has {said[0]} for all layers, which transformers' Gemma 3 passes over. "
            f"Put it into rope_parameters.{FULL}, or remove it if the model was trained without it."
        )


def _check_ramp(raw: dict[str, Any], where: str) -> None:
    """Refuse ``truncate: false``, which transformers looks for beside the layers' types, where nothing else may stand.

    Raises:
        LucidError: A block has it.
    """
    blocks = raw.get("rope_parameters")
    inner = blocks.get(FULL) if isinstance(blocks, dict) else None
    for name, block in (("rope_scaling", raw.get("rope_scaling")), (f"rope_parameters.{FULL}", inner)):
        if isinstance(block, dict) and block.get("truncate") is False:
            raise LucidError(
                f"{where}: {name}.truncate is False, which transformers' Gemma 3 passes over: it rounds the ramp of "
                "yarn to whole indices all the same. Remove it if the model was trained or is used with that code; "
                "the ramp that is not rounded is not supported in this family."
            )


FAMILY = _Gemma3()
