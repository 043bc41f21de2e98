"""Parse configurations and build models, of this package's families or of transformers' model classes."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.config_keys import ROPE_BLOCKS
from lucid_deploy.model.config_parsing import parse_config
from lucid_deploy.model.families import Family, StoredParameter, family_named, family_of

if TYPE_CHECKING:
    from lucid_deploy.model.lucid import CausalModel


def parse_model_config(raw: dict[str, Any], where: str, assume_unused: Collection[str] = ()) -> LucidConfig:
    """Parse the content of ``config.json``, of a family of this package or of a model class of transformers."""
    if not _names_class(raw):
        return parse_config(raw, where, assume_unused)
    from lucid_deploy.model.transformers_class.configuration import parse_class_config

    return parse_class_config(raw, where, assume_unused)


def make_model(config: LucidConfig, implementation: str = "blocked") -> CausalModel:
    """Build the PyTorch model of a configuration, on the current default device."""
    if config.class_config:
        from lucid_deploy.model.transformers_class.module import ClassModel

        return ClassModel(config, implementation)
    from lucid_deploy.model.lucid import LucidForCausalLM

    return LucidForCausalLM(config, implementation)


def family_for(config: LucidConfig) -> Family:
    """Return the family of a configuration, which says where a checkpoint stores the model's parameters."""
    if not config.class_config:
        return family_named(config.family)
    import torch

    with torch.device("meta"):
        return _ClassFamily(make_model(config))


class _ClassFamily(Family):
    """A model class of transformers as a family: where checkpoints store its parameters, and tensors it ignores."""

    def __init__(self, model: Any) -> None:
        self._sources, self.unused_tensors = model.sources, model.unused_tensors  # type: ignore[misc]

    def stored(self, name: str, config: LucidConfig) -> StoredParameter:
        stored: StoredParameter = self._sources[name].stored
        return stored


def _names_class(raw: dict[str, Any]) -> bool:
    """Whether a model class of transformers, not a family of this package, runs the model of ``config.json``."""
    kind = raw.get("model_type")
    if not isinstance(kind, str) or (family_of(raw) is not None and not _is_special_llama(raw)):
        return False
    try:
        from lucid_deploy.model.transformers_class.configuration import class_of
    except LucidError:  # transformers is not installed; parse_config's error for an unknown model_type says so
        return False
    return bool(class_of(kind))


def _is_special_llama(raw: dict[str, Any]) -> bool:
    """Whether a Llama needs transformers' class: it has yarn rotary scaling, or an activation other than silu."""
    blocks = [block for name in ROPE_BLOCKS if isinstance(block := raw.get(name), dict)]
    yarn = any("yarn" in (block.get("rope_type"), block.get("type")) for block in blocks)
    return raw["model_type"] == "llama" and (yarn or raw.get("hidden_act") not in (None, "silu", "swish"))
