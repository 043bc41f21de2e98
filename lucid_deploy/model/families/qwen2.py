"""Qwen2 and Qwen2.5: Llama with biases of q, k and v; later layers may attend over a window."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import msgspec

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.config_file import Flag, Names, Size, Whole
from lucid_deploy.model.families.family import FULL, SLIDING, Family

_BIASES = "Qwen2's code makes biases of q, k and v and no others, whatever this key says"


class QwenKeys(msgspec.Struct, kw_only=True, frozen=True):
    """Which layers attend over a window: as listed, or those from ``max_window_layers`` on."""

    sliding_window: Size | None = None
    use_sliding_window: Flag = False
    max_window_layers: Whole = 28
    layer_types: Names | None = None


def qwen_layer_types(keys: QwenKeys, layers: int) -> list[str]:
    """Return the type of every layer."""
    if keys.layer_types is not None:
        return keys.layer_types
    windowed = keys.use_sliding_window and keys.sliding_window is not None
    return [SLIDING if windowed and index >= keys.max_window_layers else FULL for index in range(layers)]


def check_switch(keys: QwenKeys, where: str) -> None:
    """Refuse windows that are named and switched off: transformers' code then has no window, and refuses them too.

    Raises:
        LucidError: They are.
    """
    if SLIDING in (keys.layer_types or ()) and not keys.use_sliding_window:
        raise LucidError(
            f"{where}: layer_types names {SLIDING}, and use_sliding_window is not true, so that there is no window. "
            "Set use_sliding_window to true and sliding_window to the window that the model was trained with, or name "
            f"those layers {FULL}."
        )


class _Qwen2(Family):
    model_type = "qwen2"
    architectures = ("Qwen2ForCausalLM",)
    defaults: ClassVar = {"num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096}
    keys = QwenKeys
    refused: ClassVar = {"attention_bias": _BIASES, "mlp_bias": _BIASES}
    about = "biases of q, k and v; layers over a window"

    def layer_types(self, keys: Any, layers: int) -> list[str]:
        return qwen_layer_types(keys, layers)

    def configure(self, config: LucidConfig, keys: Any, where: str) -> LucidConfig:
        check_switch(keys, where)
        return dataclasses.replace(config, attention_bias=True, attention_output_bias=False)


FAMILY = _Qwen2()
