"""Save a model that is in memory as a checkpoint on disk, for functions that read checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lucid_deploy.errors import LucidError
from lucid_deploy.model.transformers_class.module import quiet


def save_checkpoint(model: Any, tokenizer: Any, directory: Path) -> None:
    """Save a model and its tokenizer, if any; register the user's own model class with transformers in this process."""
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
        raise LucidError(
            f"{name} is not a transformers model that generates text. Pass a PreTrainedModel with a language model's "
            "head, or the directory of a checkpoint. For a PEFT model, pass the model that it wraps, and save the "
            "adapter for merge_adapter."
        )
    if model.training:
        raise LucidError(f"{name} is in training mode. Call eval() first.")
    if getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None) is not None:
        raise LucidError(f"{name} is quantized in memory. Export the checkpoint that it was loaded from.")
    if any(value.is_meta for value in model.state_dict().values()):
        raise LucidError(
            f"Some weights of {name} are on the meta device, where they have no values. Load it without device_map."
        )
    if directory.exists():
        raise LucidError(f"{directory} exists already, so the model is not saved there.")
    if model.config.model_type not in CONFIG_MAPPING:
        AutoConfig.register(model.config.model_type, type(model.config))
        AutoModelForCausalLM.register(type(model.config), type(model))
    with quiet():
        model.save_pretrained(directory)
        if tokenizer is not None:
            tokenizer.save_pretrained(directory)
