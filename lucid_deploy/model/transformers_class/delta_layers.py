"""Gated DeltaNet layers in model classes of transformers, such as Qwen3-Next and Qwen3.5.

transformers' functions for them cannot be traced with a state that is passed in, so our layer replaces transformers'.
Its projections are slices of transformers' fused ones. The trial before each export compares both layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from lucid_deploy.model.attention.delta_net import GatedDeltaNet
from lucid_deploy.model.families import StoredParameter
from lucid_deploy.model.layers.delta_settings import DeltaSettings

KIND = "gated_delta"
_SIZES = ("num_k_heads", "num_v_heads", "head_k_dim", "head_v_dim", "conv_kernel_size", "hidden_size")
_PARTS = ("conv1d", "norm", "out_proj", "A_log", "dt_bias")


class DeltaLayer(GatedDeltaNet):
    """Our layer in a transformers class; ``mix_in_class`` finds the running call, which has the cached state."""

    mix_in_class: Callable[[DeltaLayer, Tensor], Tensor]

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:  # type: ignore[override]
        return self.mix_in_class(self, hidden_states)


def put_delta_layers(
    net: Any, mix: Callable[[Any, Tensor], Tensor], implementation: str, state_dtype: str
) -> dict[str, StoredParameter]:
    """Replace a class's gated DeltaNet layers by ours; return where the class stores each of our parameters."""
    places: dict[str, StoredParameter] = {}
    for path, module in list(net.named_modules()):
        if not all(hasattr(module, name) for name in (*_SIZES, *_PARTS)):
            continue
        settings = DeltaSettings(
            key_heads=module.num_k_heads,
            value_heads=module.num_v_heads,
            key_width=module.head_k_dim,
            value_width=module.head_v_dim,
            kernel=module.conv_kernel_size,
            gate="silu",
        )
        config: Any = SimpleNamespace(
            hidden_size=module.hidden_size, rms_norm_eps=module.layer_norm_epsilon, state_dtype=state_dtype
        )
        layer = DeltaLayer(config, settings, implementation)
        layer.mix_in_class = mix
        parent, _, name = path.rpartition(".")
        setattr(net.get_submodule(parent), name, layer)
        places |= {
            f"{path}.{ours}": dataclasses.replace(rows, name=f"{path}.{rows.name}")
            for ours, rows in _rows(settings, module)
        }
    return places


def _rows(settings: DeltaSettings, module: nn.Module) -> list[tuple[str, StoredParameter]]:
    keys, values = settings.key_channels, settings.value_channels
    in_order = {"q": (0, keys), "k": (keys, 2 * keys), "v": (2 * keys, 2 * keys + values)}
    found = {f"{part}_conv1d.weight": StoredParameter("conv1d.weight", rows) for part, rows in in_order.items()}
    if hasattr(module, "in_proj_qkvz"):  # the rows of queries, keys, values and gates are grouped by key head
        shared, key = settings.value_heads // settings.key_heads, settings.key_width
        end = 2 * key + shared * settings.value_width
        of_head = {"q": (0, key), "k": (key, 2 * key), "v": (2 * key, end), "g": (end, 2 * end - 2 * key)}
        found |= {
            f"{part}_proj.weight": StoredParameter("in_proj_qkvz.weight", rows, settings.key_heads)
            for part, rows in of_head.items()
        }
        of_head = {"b": (0, shared), "a": (shared, 2 * shared)}
        found |= {
            f"{part}_proj.weight": StoredParameter("in_proj_ba.weight", rows, settings.key_heads)
            for part, rows in of_head.items()
        }
    else:
        found |= {f"{part}_proj.weight": StoredParameter("in_proj_qkv.weight", rows) for part, rows in in_order.items()}
        found |= {
            f"{part}_proj.weight": StoredParameter(f"in_proj_{theirs}.weight")
            for part, theirs in zip("gba", "zba", strict=True)
        }
    same = {"o_norm.weight": "norm.weight", "o_proj.weight": "out_proj.weight", "A_log": "A_log", "dt_bias": "dt_bias"}
    return [*found.items(), *((ours, StoredParameter(theirs)) for ours, theirs in same.items())]
