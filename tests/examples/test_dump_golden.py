"""The script to paste into training code, on a model of transformers and on one of no package, without the toolkit."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from examples.dump_golden import dump_golden
from tests.model.family_shapes import SHAPES, random_model

SCRIPT = Path(__file__).parents[2] / "examples" / "dump_golden.py"


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_the_command_runs_a_checkpoint_in_transformers_own_class(tmp_path: Path, preloaded: Path):
    model = random_model(SHAPES["qwen3"]["wide heads"]()).float()
    model.save_pretrained(tmp_path / "checkpoint")
    command = [preloaded / "python", SCRIPT, tmp_path / "checkpoint", "--output", tmp_path / "g.safetensors"]
    subprocess.run([*map(str, command)], check=True, cwd=tmp_path, capture_output=True)
    found = load_file(tmp_path / "g.safetensors")
    assert set(found) == {"input_ids", "logits", *(f"layers.{i}.{name}" for i in range(2) for name in ("key", "value"))}
    with torch.no_grad():
        wanted = model(found["input_ids"])
    torch.testing.assert_close(found["logits"], wanted.logits)
    assert metadata(tmp_path / "g.safetensors") == {
        "golden_version": "1",
        "computed_in": "float32",
        "model": "Qwen3ForCausalLM",
    }


class Own(torch.nn.Module):
    """A model of no package: it returns only logits, and must be left in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(11, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        assert not self.training and not torch.is_grad_enabled()
        return self.table(ids) @ self.table.weight.T


def test_a_model_that_returns_only_logits_is_recorded(tmp_path: Path):
    model, ids = Own().train(), torch.arange(10).reshape(2, 5)
    rows = torch.zeros(2, 1, 5, 4)
    dump_golden(model, tmp_path / "g", input_ids=ids, layers=lambda: {3: (rows, rows)})
    assert model.training
    assert set(load_file(tmp_path / "g")) == {"input_ids", "logits", "layers.3.key", "layers.3.value"}
    dump_golden(model, tmp_path / "g", vocabulary=11, tokens=8, rows=3)
    found = load_file(tmp_path / "g")
    assert set(found) == {"input_ids", "logits"} and found["input_ids"].shape == (3, 8)
    assert (found["input_ids"][:, 2:4] == found["input_ids"][:, :1]).all()  # repeated tokens
