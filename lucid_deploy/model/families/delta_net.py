"""DeltaNet (arXiv 2406.06484) as flash-linear-attention has it: layers of the delta rule, and listed ones attend."""

from __future__ import annotations

from typing import Any

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.config_file import Flag, Positive, Text
from lucid_deploy.model.families.flash_linear import FlashKeys, FlashLinearFamily, whole


class _Keys(FlashKeys, kw_only=True, frozen=True):
    expand_k: Positive = 1.0
    use_beta: Flag = True
    qk_norm: Text = "l2"
    qk_activation: Text = "silu"


class _DeltaNet(FlashLinearFamily):
    model_type = "delta_net"
    architectures = ("DeltaNetForCausalLM",)
    keys = _Keys
    linear_kind = "delta"
    about = (
        "flash-linear-attention's layers of the delta rule; the layers in attn attend to all tokens or over a window"
    )

    def settings(self, config: LucidConfig, keys: Any, where: str) -> dict[str, Any]:
        for key, value, supported in (
            ("qk_norm", keys.qk_norm, "l2"),
            ("qk_activation", keys.qk_activation, "silu"),
        ):
            if value != supported:
                raise LucidError(f"{where}: {key} {value!r} is not supported; only {supported} is.")
        widths = {
            name: whole(config.hidden_size * factor, f"hidden_size · {name}", where)
            for name, factor in (("expand_k", keys.expand_k), ("expand_v", keys.expand_v))
        }
        for name, width in widths.items():
            if width % keys.num_heads:
                raise LucidError(
                    f"{where}: hidden_size · {name} ({width}) is not a multiple of num_heads ({keys.num_heads})."
                )
        return {
            "key_heads": keys.num_heads,
            "value_heads": keys.num_heads,
            "key_width": widths["expand_k"] // keys.num_heads,
            "value_width": widths["expand_v"] // keys.num_heads,
            "kernel": keys.conv_size if keys.use_short_conv else 0,
            "gate": "silu" if keys.use_gate else "none",
            "has_beta": keys.use_beta,
            "negative_eigenvalues": keys.allow_neg_eigval,
        }


FAMILY = _DeltaNet()
