"""Settings of DeltaNet layers, given in a configuration's ``layer_settings`` by kind, for example:

"layer_settings": {"delta": {"key_heads": 4, "value_heads": 4, "key_width": 64, "value_width": 64, "kernel": 4}}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from lucid_deploy.cache.layout import CacheTensor, LayerLayout
from lucid_deploy.cache.storage import SCALED
from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import Size
from lucid_deploy.model.config_file import checked

if TYPE_CHECKING:
    from lucid_deploy.model.config import LucidConfig

LARGEST_KERNEL = 64
_Kernel = Annotated[int, Meta(ge=0, le=LARGEST_KERNEL)]
_Gate = Literal["none", "silu", "sigmoid"]


class DeltaSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The architecture of a DeltaNet layer."""

    key_heads: Size  # heads of queries and of keys
    value_heads: Size  # heads of values, each with a state: a multiple of key_heads; consecutive ones share a key head
    key_width: Size  # width of a query or key head
    value_width: Size  # width of a value head
    kernel: _Kernel = 4  # kernel size of the short convolutions, in tokens; 0: no convolutions
    gate: _Gate = "none"  # the activation of the output gate; none: no gate
    has_beta: bool = True  # whether β is computed from the token; false: it is 1
    # whether β is doubled, so that a step can reverse the sign of the value that the state holds for a key
    negative_eigenvalues: bool = False

    @property
    def key_channels(self) -> int:
        """Total width of the queries of all heads, and of the keys."""
        return self.key_heads * self.key_width

    @property
    def value_channels(self) -> int:
        """Total width of the values of all heads."""
        return self.value_heads * self.value_width

    @property
    def channels(self) -> int:
        """Number of channels of the short convolutions, over the concatenated queries, keys and values."""
        return 2 * self.key_channels + self.value_channels


def delta_settings(config: LucidConfig, kind: str) -> DeltaSettings:
    """Return the validated settings of a kind of layer, ``delta`` or ``gated_delta``."""
    given = config.layer_settings.get(kind)
    where = f"layer_settings.{kind}"
    if not isinstance(given, dict):
        raise LucidError(f"{where} is missing: layers of kind {kind} need key_heads, value_heads and their widths.")
    settings = checked(given, DeltaSettings, where)
    if settings.value_heads % settings.key_heads:
        raise LucidError(
            f"{where}: value_heads ({settings.value_heads}) is not a multiple of key_heads ({settings.key_heads})."
        )
    if settings.kernel:
        check_kernel(settings.kernel, "kernel", where)
    return settings


def check_kernel(size: int, key: str, where: str) -> None:
    """Raise a LucidError for an unsupported kernel size of short convolutions; ``key`` is its configuration key."""
    if not 2 <= size <= LARGEST_KERNEL:
        raise LucidError(
            f"{where}: {key} is {size}; short convolutions over 2 to {LARGEST_KERNEL} tokens are supported, the newest "
            "included."
        )


def state_layout(settings: DeltaSettings, state_dtype: str, cache_dtype: str) -> LayerLayout:
    """Return the layout of a layer's cache: the last inputs of its convolutions, and the recurrent state.

    The inputs of the convolutions are cached in ``cache_dtype``, or in float32 if that is int8 or fp8: they are small,
    and have no scales.
    """
    shape = (settings.value_heads, settings.key_width, settings.value_width)
    wide = "float64" if cache_dtype == "float64" else state_dtype
    recurrent = CacheTensor("recurrent_state", wide, shape, "state")
    if not settings.kernel:
        return (recurrent,)
    inputs = "float32" if cache_dtype in SCALED else cache_dtype
    return (CacheTensor("conv_state", inputs, (settings.channels, settings.kernel - 1), "state"), recurrent)


def weight_names(settings: DeltaSettings, attribute: str, decays: bool) -> tuple[str, ...]:
    """Return the names of a layer's weights, such as ``linear_attn.q_proj.weight``."""
    names = [f"{name}_proj.weight" for name in ("q", "k", "v")]
    names += ["b_proj.weight"] if settings.has_beta else []
    names += ["a_proj.weight", "A_log", "dt_bias"] if decays else []
    names += [f"{name}_conv1d.weight" for name in ("q", "k", "v")] if settings.kernel else []
    names += ["g_proj.weight"] if settings.gate != "none" else []
    return tuple(f"{attribute}.{name}" for name in (*names, "o_norm.weight", "o_proj.weight"))
