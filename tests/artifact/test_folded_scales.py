"""Scales that went into weights: what they make of a checkpoint, there and back, and their file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lucid_deploy.artifact.folded_scales import FILE, read_scales, scaled, write_scales
from lucid_deploy.errors import CheckFailed

S, T = np.array([2.0, 0.5, 4.0], np.float32), np.array([8.0, 0.25], np.float32)
SCALES = {"norm.weight.outputs": S, "w.weight.inputs": S, "w.weight.outputs": T, "w.bias.outputs": T}


def test_a_product_stays_what_it_is() -> None:
    """All scales are powers of two, so nothing is rounded."""
    x, norm = torch.tensor([3.0, -1.0, 0.5]), torch.tensor([1.0, 2.0, 3.0])
    weight, bias = torch.arange(6.0).reshape(2, 3), torch.tensor([1.0, -2.0])
    given = x * scaled(norm, "norm.weight", SCALES)
    found = scaled(weight, "w.weight", SCALES) @ given + scaled(bias, "w.bias", SCALES)
    assert (found * torch.from_numpy(T)).equal(weight @ (x * norm) + bias)
    assert scaled(scaled(weight, "w.weight", SCALES), "w.weight", SCALES, back=True).equal(weight)
    assert scaled(weight, "other.weight", SCALES) is weight
    assert scaled(norm.double(), "norm.weight", SCALES).dtype == torch.float32


def test_the_file_is_there_where_there_are_scales(tmp_path: Path) -> None:
    write_scales(tmp_path, {})
    assert not list(tmp_path.iterdir()) and read_scales(tmp_path) == {}
    write_scales(tmp_path, SCALES)
    found = read_scales(tmp_path)
    assert found.keys() == SCALES.keys() and all(np.array_equal(found[name], SCALES[name]) for name in SCALES)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:40])
    with pytest.raises(CheckFailed, match="is damaged"):
        read_scales(tmp_path)
