"""benchmarks/methods_side_by_side.py: its rounded checkpoint is read, and all ways are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import methods_side_by_side
import pytest

from lucid_deploy.model.checkpoint import DEMO, Checkpoint


def test_the_rounded_checkpoint_is_read(tmp_path: Path) -> None:
    """Its weights are within half a step of 7.5 a block's largest, and a sixteenth of their blocks' numbers."""
    source, stored = Checkpoint(DEMO), Checkpoint(methods_side_by_side.write_stored(tmp_path / "c"))
    assert stored.layout is not None and stored.layout.bits == 4
    name = "model.layers.1.self_attn.k_proj.weight"
    exact, found = (each.tensor(name).float().unflatten(1, (-1, 32)) for each in (source, stored))
    step = exact.abs().amax(-1, keepdim=True) / 7.5
    assert ((found - exact).abs() <= 0.51 * step + 1e-6).all() and not found.equal(exact)
    assert len((found[0, 0] / step[0, 0]).round().unique()) <= 16


def test_every_way_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods_side_by_side, "IMAGE", tmp_path / "plot")
    facts: dict[str, Any] = {
        "weights_bytes": 2**20,
        "weights": {"relative_error": 0.1},
        "as_run": {"relative_error": 0.2},
    }
    methods_side_by_side.draw(dict.fromkeys(methods_side_by_side.WAYS, facts))
    assert (tmp_path / "plot.png").stat().st_size > 5000 and "<svg" in (tmp_path / "plot.svg").read_text()
