"""The base class of model families; its defaults are Llama's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

if TYPE_CHECKING:
    import torch

    from lucid_deploy.model.block import Layer
    from lucid_deploy.model.config import LucidConfig

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"


class NoKeys(msgspec.Struct, kw_only=True, frozen=True):
    """The keys of a family that has none beyond Llama's: an empty struct."""


@dataclass(frozen=True)
class StoredParameter:
    """Where a parameter of the model is stored in a checkpoint."""

    name: str  # the stored tensor
    # first and past-the-end row of the parameter in a tensor of several fused parameters; None: all rows
    rows: tuple[int, int] | None = None
    groups: int = 1  # number of equal parts of the tensor, to each of which rows applies
    plus: float = 0.0  # offset added to the stored values: 1 for norms that scale by 1 + w
    # names and shapes of the stored tensors that the parameter is joined from, such as one per expert, if the
    # checkpoint does not store it as one tensor called name
    parts: tuple[tuple[str, tuple[int, ...]], ...] = ()
    join: Callable[[list[torch.Tensor]], torch.Tensor] | None = None  # makes the parameter from the parts


class Family:
    """A family of models. Subclass it, and override what differs from Llama.

    Attributes:
        model_type: The ``model_type`` in ``config.json``.
        architectures: The class names allowed in ``architectures``.
        keys: The supported keys beyond Llama's: a msgspec struct with types and defaults.
        ignored: Further keys, which change no result of the family's code; any value is accepted.
        linear_kind: The kind of its ``linear_attention`` layers in ``layer_types``; empty: it has none.
        unused_tensors: Regular expressions for the names of stored tensors that its code ignores.
        about: One line for the table of supported models: the difference from Llama.
    """

    model_type: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]]
    keys: ClassVar[type[msgspec.Struct]] = NoKeys
    ignored: ClassVar[frozenset[str]] = frozenset()
    linear_kind: ClassVar[str] = ""
    unused_tensors: ClassVar[tuple[str, ...]] = ()
    about: ClassVar[str] = ""

    @property
    def computed(self) -> frozenset[str]:
        """The names of the supported keys beyond Llama's."""
        return frozenset(self.keys.__struct_fields__)

    def normalized(self, raw: dict[str, Any], where: str) -> dict[str, Any]:
        """Return the content of ``config.json`` with the family's keys renamed to Llama's."""
        return raw

    def layer_types(self, keys: Any, layers: int) -> list[str]:
        """Return ``full_attention``, ``sliding_attention`` or ``linear_attention`` for every layer."""
        return [FULL] * layers

    def configure(self, config: LucidConfig, keys: Any, where: str) -> LucidConfig:
        """Return ``config``, parsed from Llama's keys, completed from the family's own keys in the struct ``keys``."""
        return config

    def stored(self, name: str, config: LucidConfig) -> StoredParameter:
        """Return where a parameter, such as ``model.layers.0.self_attn.q_proj.weight``, is stored in a checkpoint."""
        return StoredParameter(name)

    def layer(self, config: LucidConfig, index: int, implementation: str) -> Layer | None:
        """Make the PyTorch module of one layer, with its norms and residuals; None: the layer is built as Llama's."""
        return None


class _Llama(Family):
    """Llama, and LUCID as its authors publish it: Llama's tensor names, and further keys in ``config.json``."""

    model_type = "llama"
    architectures = ("LlamaForCausalLM", "LLaMAForCausalLM")
    about = "LUCID's published checkpoints are of this family"


LLAMA = _Llama()
