"""benchmarks/position_error.py finds where along a text logits are wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import position_error
import torch
from matplotlib import image

from lucid_deploy.artifact import Artifact
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.session import Session
from lucid_deploy.runtimes.torch.session import TorchSession


def test_errors_have_a_place(demo: Callable[..., Artifact], demo_directory: Path, tmp_path: Path) -> None:
    ids = position_error.text_of(TextTokenizer(demo_directory), 96)
    assert len(ids) == 96
    exact = TorchSession(load_model(Checkpoint(demo_directory), torch.float64))
    sessions: dict[str, Session] = {"float32": open_session(demo())}
    baseline = {"PyTorch": TorchSession(load_model(Checkpoint(demo_directory), torch.float32))}
    allowed = 4 * position_error.errors(exact, baseline, ids, chunk=96)["PyTorch"].max()
    found = position_error.errors(exact, sessions, ids, chunk=32)
    assert found["float32"].shape == (96,) and 0 < found["float32"].max() <= allowed
    whole = position_error.errors(exact, sessions, ids, chunk=96)
    assert whole["float32"].shape == (96,) and 0 < whole["float32"].max() <= allowed
    assert position_error.errors(exact, sessions, ids, chunk=32, minutes=0)["float32"].shape == (32,)
    parts = {name: position_error.summary(row, 4) for name, row in found.items()}
    assert parts["float32"][-1]["to"] == 96
    assert max(row["largest"] for row in parts["float32"]) == found["float32"][1:].max()
    position_error.draw(parts, tmp_path / "plot.png")
    picture = image.imread(tmp_path / "plot.png")[60:-60, :, :3]  # without title and labels
    left = picture[:, picture.shape[1] // 4 : picture.shape[1] // 2]
    assert (np.ptp(left, axis=-1) > 0.2).any(), "the lines are drawn over the whole width"


def test_a_fault_along_the_text_shows_where_it_is() -> None:
    row = np.where(np.arange(96) >= 40, 0.01, 1e-7)
    parts = position_error.summary(row, 6)
    assert all(part["median"] == 1e-7 for part in parts if part["to"] <= 40)
    assert all(part["median"] == 0.01 for part in parts if part["from"] >= 40)
