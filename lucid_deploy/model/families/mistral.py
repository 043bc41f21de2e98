"""Mistral: Llama whose layers may all attend over a window."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from lucid_deploy.model.config_file import Size
from lucid_deploy.model.families.family import FULL, SLIDING, Family

NO_BIASES = "Mistral's code makes no biases"


class _Keys(msgspec.Struct, kw_only=True, frozen=True):
    sliding_window: Size | None = None


class _Mistral(Family):
    model_type = "mistral"
    architectures = ("MistralForCausalLM",)
    defaults: ClassVar = {"num_key_value_heads": 8, "max_position_embeddings": 4096 * 32, "sliding_window": 4096}
    keys = _Keys
    refused: ClassVar = {"attention_bias": NO_BIASES, "mlp_bias": NO_BIASES}
    # Its code asks for nothing but sliding_window.
    ignored = frozenset(("use_sliding_window", "max_window_layers"))
    about = "all layers over a window, if sliding_window is given"

    def layer_types(self, keys: Any, layers: int) -> list[str]:
        return [FULL if keys.sliding_window is None else SLIDING] * layers


FAMILY = _Mistral()
