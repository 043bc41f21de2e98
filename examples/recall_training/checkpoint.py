"""A trained model on disk, in the published layout: what lucid-deploy exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import Tokenizer

from lucid_deploy.model.lucid import LucidForCausalLM
from recall_training.words import SPECIAL_IDS, tokenizer_config


def write_checkpoint(
    model: LucidForCausalLM, raw: dict[str, Any], tokenizer: Tokenizer, output: Path, new_tokens: int
) -> None:
    """Write configuration, weights and tokenizer.

    Args:
        model: Trained.
        raw: Its ``config.json``.
        tokenizer: Of its words.
        output: Directory, made if it is missing.
        new_tokens: Most tokens of an answer, for ``generation_config.json``.
    """
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "config.json", raw)
    write_json(output / "generation_config.json", {**SPECIAL_IDS, "do_sample": False, "max_new_tokens": new_tokens})
    write_json(output / "tokenizer_config.json", tokenizer_config(model.config.max_position_embeddings))
    tokenizer.save(str(output / "tokenizer.json"))
    state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    save_file(state, output / "model.safetensors", metadata={"format": "pt"})
    (output / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner only


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write JSON for people."""
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
