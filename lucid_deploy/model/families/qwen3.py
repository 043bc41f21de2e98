"""Qwen3: Llama with RMS norms of queries and keys before rotation; later layers may attend over a window."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.families.family import Family
from lucid_deploy.model.families.qwen2 import QwenKeys, check_switch, qwen_layer_types


class _Qwen3(Family):
    model_type = "qwen3"
    architectures = ("Qwen3ForCausalLM",)
    defaults: ClassVar = {
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
    }
    keys = QwenKeys
    refused: ClassVar = {"mlp_bias": "Qwen3's code makes no biases in its MLPs"}
    about = "norms of queries and keys before rotation; layers over a window"

    def layer_types(self, keys: Any, layers: int) -> list[str]:
        return qwen_layer_types(keys, layers)

    def configure(self, config: LucidConfig, keys: Any, where: str) -> LucidConfig:
        check_switch(keys, where)
        return dataclasses.replace(config, qk_norm="before_rope")


FAMILY = _Qwen3()
