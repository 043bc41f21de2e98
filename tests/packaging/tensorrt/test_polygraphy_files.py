"""What is written, Polygraphy reads back as it was."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from lucid_deploy.errors import LucidError
from lucid_deploy.packaging.tensorrt.package import check_polygraphy, write_recorded
from lucid_deploy.packaging.tensorrt.recorded import RUNNER, Recorded


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_come_back(dtype: torch.dtype, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from polygraphy.comparator import RunResults
    from polygraphy.json import load_json

    inputs = {"ids": torch.arange(3), "past": torch.zeros(1, 2, 0, 4, dtype=dtype)}
    recorded = Recorded(inputs, {"logits": torch.tensor([[0.5, -2.0]], dtype=dtype)}, {"logits": 1.0})
    write_recorded(recorded, tmp_path / "in.json", tmp_path / "out.json")
    assert capfd.readouterr() == ("", "")
    [call] = load_json(str(tmp_path / "in.json"))
    [[runner, [result]]] = RunResults.load(str(tmp_path / "out.json"))
    assert runner == RUNNER and list(call) == ["ids", "past"]
    assert torch.equal(torch.as_tensor(call["past"]), inputs["past"]) and call["past"].shape == (1, 2, 0, 4)
    assert torch.as_tensor(result["logits"]).dtype == dtype
    assert torch.equal(torch.as_tensor(result["logits"]), recorded.outputs["logits"])


def test_polygraphy_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT and what runs engines, which come in one extra with it, need not be installed for a package."""
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    said = r'polygraphy is needed to package for TensorRT .*Run: pip install "polygraphy>=0\.53\.6,<1"$'
    with pytest.raises(LucidError, match=said):
        check_polygraphy()
