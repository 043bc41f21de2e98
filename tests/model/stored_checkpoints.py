"""Checkpoints on disk: what they hold, changed, and what they are refused with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import Checkpoint, load_model

Tensors = dict[str, torch.Tensor]


def stored(checkpoint: Path) -> Tensors:
    return load_file(checkpoint / "model.safetensors")


def store(checkpoint: Path, tensors: Tensors) -> None:
    save_file(tensors, checkpoint / "model.safetensors")


def refusal(checkpoint: Path) -> str:
    with pytest.raises(LucidError) as caught:
        Checkpoint(checkpoint)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def parameters(checkpoint: Path) -> Tensors:
    return load_model(checkpoint).state_dict()
