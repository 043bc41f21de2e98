"""Qwen3.5, its text model without experts: Qwen3-Next with the projections of its delta layers apart."""

from __future__ import annotations

from typing import Any, ClassVar

from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.config_keys import ROPE_BLOCKS
from lucid_deploy.model.families.family import StoredParameter
from lucid_deploy.model.families.qwen3_next import LinearKeys, QwenHybrid
from lucid_deploy.model.layers.delta_settings import delta_settings

# How positions of images are divided among frequencies. A text has one position a token, so they say nothing.
_OF_IMAGES = ("mrope_section", "mrope_interleaved")


class _Qwen35(QwenHybrid):
    model_type = "qwen3_5_text"
    architectures = ("Qwen3_5ForCausalLM",)
    defaults: ClassVar = {"num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 32768}
    keys = LinearKeys
    unused_tensors = ("mtp.", "model.visual.")  # as its code has it
    about = "Qwen3.5's text model, as Qwen3-Next without experts"

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


FAMILY = _Qwen35()
