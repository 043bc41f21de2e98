"""Gated DeltaNet (arXiv 2412.06464) as flash-linear-attention has it: DeltaNet whose state decays."""

from __future__ import annotations

from typing import Any

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.config_file import Flag, Positive, Size, Text
from lucid_deploy.model.families.flash_linear import FlashKeys, FlashLinearFamily, whole

_GATES = {"swish": "silu", "silu": "silu", "sigmoid": "sigmoid"}


class _Keys(FlashKeys, kw_only=True, frozen=True):
    expand_v: Positive = 2.0
    use_gate: Flag = True
    head_dim: Size = 256
    num_v_heads: Size | None = None
    output_gate_activation: Text = "swish"


class _GatedDeltaNet(FlashLinearFamily):
    model_type = "gated_deltanet"
    architectures = ("GatedDeltaNetForCausalLM",)
    keys = _Keys
    linear_kind = "gated_delta"
    about = "flash-linear-attention's layers of the gated delta rule; the layers in attn attend, as in delta_net"

    def settings(self, config: LucidConfig, keys: Any, where: str) -> dict[str, Any]:
        if keys.output_gate_activation not in _GATES:
            raise LucidError(
                f"{where}: output_gate_activation {keys.output_gate_activation!r} is not supported; supported are "
                f"{', '.join(_GATES)}."
            )
        values = keys.num_v_heads or keys.num_heads
        if values % keys.num_heads:
            raise LucidError(f"{where}: num_v_heads ({values}) is not a multiple of num_heads ({keys.num_heads}).")
        return {
            "key_heads": keys.num_heads,
            "value_heads": values,
            "key_width": keys.head_dim,
            "value_width": whole(keys.head_dim * keys.expand_v, "head_dim · expand_v", where),
            "kernel": keys.conv_size if keys.use_short_conv else 0,
            "gate": _GATES[keys.output_gate_activation] if keys.use_gate else "none",
            "negative_eigenvalues": keys.allow_neg_eigval,
        }


FAMILY = _GatedDeltaNet()
