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
    expected = model(ids, attention_mask=mask)[0][mask]
    rounded = load_model(Checkpoint(demo_directory), torch.float32)(ids, attention_mask=mask)[0][mask]
    float32_error = (rounded - expected).abs().max()
    found = other(ids, attention_mask=mask)[0][mask]
    assert (found - expected).abs().max() <= 4 * 2.0**-29 * float32_error, "float64 has 29 bits more"
    use(other, way, "bfloat16")
    assert (other(ids, attention_mask=mask)[0][mask] - expected).abs().max() > 4 * float32_error
