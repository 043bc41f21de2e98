"""benchmarks/solvers.py puts a solver in the place of the model's own, and measures it."""

from __future__ import annotations

from pathlib import Path

import pytest
import solvers
import torch
from click.testing import CliRunner

from lucid_deploy.model.checkpoint import Checkpoint, load_model


@pytest.mark.parametrize("way", ["dense", "blocked", "substitution"])
def test_the_model_is_the_same_with_another_solver(demo_directory: Path, way: str) -> None:
    model = load_model(Checkpoint(demo_directory), torch.float64)
    other = solvers.with_solvers(model).double()
    ids = torch.randint(3, 90, (2, 70), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 70, dtype=torch.bool)
    mask[1, :5] = False
    solvers.SolverAttention.way = (way, "float64")
    expected, found = model(ids, attention_mask=mask)[0], other(ids, attention_mask=mask)[0]
    assert torch.allclose(found[mask], expected[mask], rtol=1e-9, atol=1e-9)
    solvers.SolverAttention.way = (way, "bfloat16")
    assert not torch.allclose(other(ids, attention_mask=mask)[0][mask], expected[mask], rtol=1e-4, atol=1e-4)


def test_it_measures_what_is_asked() -> None:
    result = CliRunner().invoke(
        solvers.main, ["--lengths", "48", "--questions", "4", "--rounds", "1", "--no-write"], catch_exceptions=False
    )
    lines = result.stdout.splitlines()
    assert len(lines) == 4 * 3 and all("error" in line and "of 4 right" in line for line in lines)
