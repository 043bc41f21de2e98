"""A solver in the place of the model's own: the same answers where it is right, others where it rounds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lucid_deploy.bench.solver_attention import use, with_solvers
from lucid_deploy.model.checkpoint import Checkpoint, load_model


@pytest.mark.parametrize("way", ["dense", "blocked", "substitution"])
def test_the_model_is_the_same_with_another_solver(demo_directory: Path, way: str) -> None:
    model = load_model(Checkpoint(demo_directory), torch.float64)
    other = with_solvers(model)
    ids = torch.randint(3, 90, (2, 70), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 70, dtype=torch.bool)
    mask[1, :5] = False
    use(other, way, "float64")
    expected, found = model(ids, attention_mask=mask)[0], other(ids, attention_mask=mask)[0]
    assert torch.allclose(found[mask], expected[mask], rtol=1e-9, atol=1e-9)
    use(other, way, "bfloat16")
    assert not torch.allclose(other(ids, attention_mask=mask)[0][mask], expected[mask], rtol=1e-4, atol=1e-4)
