"""What a training goes on from after it was stopped: one file, written whole or not at all."""

from __future__ import annotations

import io
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lucid_deploy.errors import LucidError
from lucid_deploy.files import atomic_write

NAME = "training.pt"  # beside the checkpoint


@dataclass(frozen=True)
class Settings:
    """All that determines the weights of a training, with PyTorch's version and the machine."""

    attention: str  # lucid or llama
    steps: int  # optimizer steps in all
    seed: int  # of parameters and data
    context: int  # most tokens of a training sequence
    batch_tokens: int  # of a step
    hidden: int  # width of the model
    plain: bool  # without either help
    threads: int  # the order of sums depends on them


def save_state(
    directory: Path, settings: Settings, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Write weights and optimizer after ``step`` steps."""
    content = io.BytesIO()
    state = {"settings": asdict(settings), "step": step, "model": model.state_dict()}
    torch.save({**state, "optimizer": optimizer.state_dict()}, content)
    atomic_write(directory / NAME, content.getvalue())


def load_state(directory: Path, settings: Settings, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put the state on disk into model and optimizer; return how many steps are done, 0 if there is none.

    Raises:
        LucidError: The file is damaged, or of a training with other settings.
    """
    path = directory / NAME
    if not path.exists():
        return 0
    state = _read(path)
    known = asdict(settings)
    other = [
        f"{name} {state['settings'].get(name)!r}, not {value!r}"
        for name, value in known.items()
        if state["settings"].get(name) != value
    ]
    if other:
        raise LucidError(
            f"{path} is of a training with {', '.join(other)}. Give the same options to go on with it, or another "
            "--output."
        )
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise LucidError(f"{path} does not fit this model. Remove it to start again.") from error
    return int(state["step"])


def _read(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, weights_only=True)
        if not {"settings", "step", "model", "optimizer"} <= set(state):
            raise ValueError("fields are missing")
    except (OSError, RuntimeError, ValueError, EOFError, TypeError, pickle.UnpicklingError) as error:
        raise LucidError(f"{path} is damaged or no state of a training. Remove it to start again.") from error
    return dict(state)
