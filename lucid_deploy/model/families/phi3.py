"""Phi-3: Llama with fused tensors (q, k and v in one; gate and up in one), over a window if one is given."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.config_file import Size
from lucid_deploy.model.families.family import FULL, SLIDING, Family, StoredParameter

_NO_BIASES = "Phi-3's code makes no biases"


class _Keys(msgspec.Struct, kw_only=True, frozen=True):
    sliding_window: Size | None = None


class _Phi3(Family):
    model_type = "phi3"
    architectures = ("Phi3ForCausalLM",)
    defaults: ClassVar = {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096}
    keys = _Keys
    refused: ClassVar = {"attention_bias": _NO_BIASES, "mlp_bias": _NO_BIASES}
    ignored = frozenset(("use_sliding_window", "max_window_layers"))
    about = "fused tensors; all layers over a window, if sliding_window is given"

    def layer_types(self, keys: Any, layers: int) -> list[str]:
        return [FULL if keys.sliding_window is None else SLIDING] * layers

    def configure(self, config: LucidConfig, keys: Any, where: str) -> LucidConfig:
        kind = config.rope_scaling.rope_type
        if kind != "default":
            raise LucidError(
                f"{where}: rope_scaling {kind!r} is not supported in this family; only default is. transformers' Phi-3 "
                "refuses linear, dynamic and llama3 too, and takes yarn for longrope."
            )
        return config

    def stored(self, name: str, config: LucidConfig) -> StoredParameter:
        query, kv = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
        fused = {
            "self_attn.q_proj": ("self_attn.qkv_proj", 0, query),
            "self_attn.k_proj": ("self_attn.qkv_proj", query, query + kv),
            "self_attn.v_proj": ("self_attn.qkv_proj", query + kv, query + 2 * kv),
            "mlp.gate_proj": ("mlp.gate_up_proj", 0, config.intermediate_size),
            "mlp.up_proj": ("mlp.gate_up_proj", config.intermediate_size, 2 * config.intermediate_size),
        }
        for part, (whole, start, end) in fused.items():
            if f".{part}." in name:
                return StoredParameter(name.replace(part, whole), (start, end))
        return StoredParameter(name)


FAMILY = _Phi3()
