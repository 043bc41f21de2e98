"""The configuration of a model: what a checkpoint's ``config.json`` says and an artifact's manifest records.

:mod:`lucid_deploy.model.config_file` reads ``config.json``. Nothing here imports torch.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from lucid_deploy.errors import LucidError
from lucid_deploy.plugins.table import UNIT

LUCID, STANDARD, WINDOW = "lucid", "standard", "window"  # kinds of attention layers
LUCID_TYPES = ("lucid", "oglucid")  # the values of attention_type that mean LUCID
ATTENTION_TYPES = (*LUCID_TYPES, "llama")
LARGEST_WINDOW = 2**20  # tokens

# Larger sizes are mistakes that would exhaust memory or overflow later.
Size = Annotated[int, Meta(gt=0, le=2**20, description="a positive whole number")]
LayerCount = Annotated[int, Meta(gt=0, le=10_000, description="a positive whole number")]
Context = Annotated[int, Meta(gt=0, le=2**31 - 1, description="a positive whole number")]
Positive = Annotated[float, Meta(gt=0, le=sys.float_info.max, description="a positive number")]
_Attention = Annotated[str, Meta(pattern="^(lucid|oglucid|llama)$")]
_RopeType = Annotated[str, Meta(pattern="^(default|linear|dynamic|llama3)$")]
_Norm = Annotated[str, Meta(pattern="^(none|after_rope)$")]
_Diagonal = Annotated[str, Meta(pattern="^(unit|training)$")]
_StateType = Annotated[str, Meta(pattern="^(float32|float16|bfloat16)$")]

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are scaled for longer contexts; the fields have transformers' names."""

    # default (unchanged), linear (all divided by factor), llama3 (low ones divided, high ones kept, a ramp between),
    # dynamic (unchanged up to max_position_embeddings, which sessions do not exceed)
    rope_type: _RopeType = "default"
    factor: float = 1.0  # linear and llama3 only: the divisor
    low_freq_factor: float = 1.0  # llama3 only: wavelengths above original context / low_freq_factor are stretched
    high_freq_factor: float = 4.0  # llama3 only: wavelengths below original context / high_freq_factor are kept
    original_max_position_embeddings: int = 8192  # llama3 only: the context length before scaling, in tokens


@dataclass(frozen=True)
class Rope:
    """The rotary settings of a layer: the base of its frequencies, and their scaling."""

    theta: float
    scaling: RopeScaling


@dataclass(frozen=True)
class AttentionShape:
    """The attention and the experts of one layer of a transformers model class."""

    heads: int  # query heads
    kv_heads: int  # key/value heads
    head_dim: int  # width of a head
    scale: float  # factor of the scores before the softmax
    window: int | None = None  # how many tokens, itself included, a token sees; None: all before it
    softcap: float | None = None  # the scores s become softcap · tanh(s / softcap); None: no soft cap
    weights: tuple[str, ...] = ()  # names of the weights of the module that calls attention, without the layer's prefix
    like: int = 0  # index of the first layer that differs from this one only in the values of its weights
    sinks: bool = False  # whether it has attention sinks: one extra score per query head in the softmax
    # number of experts in its MLP, and number of experts used per token; None: no experts
    experts: tuple[int, int] | None = None
    is_delta: bool = False  # whether it is a gated DeltaNet layer, without attention


@dataclass(frozen=True)
class LucidConfig:
    """The architecture of a model. Fields shared with transformers' ``LlamaConfig`` have its names."""

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: LayerCount
    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: Size  # width of one head; need not be hidden_size / num_attention_heads
    rms_norm_eps: Positive
    max_position_embeddings: Context
    # lucid (oglucid is an older spelling of the same) or llama (standard attention)
    attention_type: _Attention = "lucid"
    use_rope: bool = True  # whether queries and keys are rotated; some LUCID models have no position encoding
    rope_theta: Positive = 10000.0
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    tie_word_embeddings: bool = False
    attention_bias: bool = False  # whether q_proj, k_proj and v_proj have biases
    mlp_bias: bool = False  # whether gate_proj, up_proj and down_proj have biases
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()  # tokens that end a generation; may be empty
    layer_kinds: tuple[str, ...] = ()  # the kind of every layer; empty: attention_type applies to all
    # settings of layer kinds beyond Llama's, as plain data: by kind
    layer_settings: dict[str, Any] = field(default_factory=dict)
    # none, or after_rope: after rotation, queries and keys go through RMS norms with weights of width head_dim, q_norm
    # and k_norm. The cache holds the normed keys.
    qk_norm: _Norm = "none"
    family: str = "llama"  # model_type of a family in lucid_deploy.model.families, or of a class of transformers
    attention_output_bias: bool = False  # whether o_proj has a bias
    sliding_window: int | None = None  # how many tokens, itself included, a token sees in window layers
    rope_layers: tuple[bool, ...] = ()  # which layers rotate; empty: all, if use_rope
    # the diagonal entry of row i of L: unit is 1, training follows the formula, exp(√d(m/(m + eps) − 1)) with
    # m the mean square of key i. Not a key of config.json.
    diagonal: _Diagonal = UNIT
    # type of recurrent states in the cache, float32 or the exported model's; a float64 model stores float64. Not a key
    # of config.json.
    state_dtype: _StateType = "float32"
    # the keys of config.json for the transformers class that runs the model; empty: this package implements its family
    class_config: dict[str, Any] = field(default_factory=dict)
    class_layers: tuple[int, ...] = ()  # indices of the class's layers that the model has; empty: all
    attention: tuple[AttentionShape, ...] = ()  # of each of its layers; empty: this package implements its family
    softcap: float | None = None  # as AttentionShape.softcap

    def experts_of(self, index: int) -> tuple[int, int] | None:
        """Return the number of experts in a layer's MLP, and the number used per token; None if it has no experts."""
        return self.attention[index].experts if self.attention else None

    def of_layer(self, index: int) -> LucidConfig:
        """Return this configuration with the heads, their width, the window and the soft cap of one layer."""
        if not self.attention:
            return self
        own = self.attention[index]
        return replace(
            self,
            num_attention_heads=own.heads,
            num_key_value_heads=own.kv_heads,
            head_dim=own.head_dim,
            sliding_window=own.window,
            softcap=own.softcap,
        )

    def rope(self, index: int) -> Rope | None:
        """Return a layer's rotary settings; None if it has none, or if a transformers class runs the model."""
        if self.class_config or not self.use_rope or (self.rope_layers and not self.rope_layers[index]):
            return None
        return Rope(self.rope_theta, self.rope_scaling)

    @property
    def has_narrow_states(self) -> bool:
        """Whether recurrent states, computed in float32, are cached in a narrower type."""
        return self.state_dtype != "float32"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of every layer, first to last, see :mod:`lucid_deploy.model.layers`."""
        return self.layer_kinds or ("lucid" if self.is_lucid else "standard",) * self.num_hidden_layers

    @property
    def is_lucid(self) -> bool:
        """Whether ``attention_type`` is LUCID, whose values are preconditioned; False: standard attention."""
        return self.attention_type in LUCID_TYPES

    def llama_sizes(self) -> dict[str, Any]:
        """Return the sizes by the names of transformers' ``LlamaConfig``."""
        return {name: getattr(self, name) for name in _SIZES}

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that :meth:`from_dict` turns back into an equal configuration."""
        builtins: dict[str, Any] = msgspec.to_builtins(asdict(self))
        return builtins

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LucidConfig:
        """Rebuild a configuration from :meth:`to_dict` (not from a checkpoint's ``config.json``).

        Raises:
            KeyError: A field is missing or unknown.
            ValueError: A field has a wrong type or an invalid value, or fields contradict each other.
        """
        names = {item.name for item in fields(cls)}
        if wrong := names ^ data.keys():
            raise KeyError(f"fields {', '.join(sorted(wrong))}")
        config = msgspec.convert(data, cls)
        if (problem := config.problem()) is not None:
            raise ValueError(problem)
        return config

    def problem(self) -> str | None:
        """Return why the fields are inconsistent, as a clause without a full stop; None if they are consistent."""
        tokens = [token for token in (self.bos_token_id, *self.eos_token_ids) if token is not None]
        beyond = [token for token in tokens if not 0 <= token < self.vocab_size]
        layers = self.num_hidden_layers
        if beyond:
            return (
                f"token {beyond[0]}, a bos_token_id or eos_token_id, is outside the vocabulary (0 to "
                f"{self.vocab_size - 1})"
            )
        if self.head_dim == 0:
            return f"hidden_size ({self.hidden_size}) is below num_attention_heads ({self.num_attention_heads})"
        if self.num_attention_heads % self.num_key_value_heads:
            return (
                f"num_attention_heads ({self.num_attention_heads}) is not a multiple of num_key_value_heads "
                f"({self.num_key_value_heads})"
            )
        if len(self.kinds) != layers:
            return f"layer_kinds names {len(self.kinds)} layers, num_hidden_layers is {layers}"
        if self.use_rope and not self.class_config and self.head_dim % 2:
            return f"rotary positions need an even head_dim, not {self.head_dim}"
        if len(self.rope_layers) not in (0, layers):
            return f"rope_layers is {self.rope_layers}, but the model has {layers} layers"
        if len(self.attention) != (layers if self.class_config else 0):
            return f"attention describes {len(self.attention)} of {layers} layers"
        if WINDOW in self.kinds and not 0 < (self.sliding_window or 0) <= LARGEST_WINDOW:
            return f"sliding_window is {self.sliding_window}"
        return None


def check_shape(config: LucidConfig, where: str) -> None:
    """Raise a LucidError if fields of a configuration are inconsistent; the message starts with ``where``."""
    if (problem := config.problem()) is not None:
        raise LucidError(f"{where}: {problem}.")
