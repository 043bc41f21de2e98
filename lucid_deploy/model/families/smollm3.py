"""SmolLM3: Llama of which some layers have no rotary positions; those may attend over a window."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.config_file import Flag, Names, Size
from lucid_deploy.model.families.family import FULL, SLIDING, Family

_Switches = Annotated[list[Annotated[int, Meta(ge=0, le=1)]], Meta(description="a list of 0 and 1")]


class _Keys(msgspec.Struct, kw_only=True, frozen=True):
    no_rope_layers: _Switches | None = None
    no_rope_layer_interval: Size = 4
    sliding_window: Size | None = None
    use_sliding_window: Flag = False
    layer_types: Names | None = None


def _rotated(keys: _Keys, layers: int) -> list[bool]:
    """Return which layers rotate: 1 in ``no_rope_layers`` means that it does."""
    if keys.no_rope_layers is not None:
        return [value == 1 for value in keys.no_rope_layers[:layers]]  # it may name more than there are
    return [(index + 1) % keys.no_rope_layer_interval != 0 for index in range(layers)]


class _SmolLM3(Family):
    model_type = "smollm3"
    architectures = ("SmolLM3ForCausalLM",)
    defaults: ClassVar = {
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "rope_theta": 2000000.0,
    }
    keys = _Keys
    ignored = frozenset(("max_window_layers",))
    about = "layers without rotary positions; layers over a window"

    def layer_types(self, keys: Any, layers: int) -> list[str]:
        if keys.layer_types is not None:
            return keys.layer_types
        windowed = keys.use_sliding_window and keys.sliding_window is not None
        return [SLIDING if windowed and not rotated else FULL for rotated in _rotated(keys, layers)]

    def configure(self, config: LucidConfig, keys: Any, where: str) -> LucidConfig:
        rotated = _rotated(keys, config.num_hidden_layers)
        if len(rotated) < config.num_hidden_layers:
            raise LucidError(
                f"{where}: no_rope_layers names {len(rotated)} layers, num_hidden_layers is {config.num_hidden_layers}."
            )
        if SLIDING in (keys.layer_types or ()) and not keys.use_sliding_window:
            raise LucidError(
                f"{where}: layer_types names {SLIDING}, and use_sliding_window is not true. Of transformers' "
                "implementations of attention, eager and sdpa then attend over a window, and flash attention to all "
                "tokens. Set use_sliding_window to true if the model was trained with windows; if not, name those "
                f"layers {FULL}."
            )
        return dataclasses.replace(config, rope_layers=() if all(rotated) else tuple(rotated))


FAMILY = _SmolLM3()
