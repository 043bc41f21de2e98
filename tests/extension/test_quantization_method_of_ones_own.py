"""Proof by extension: a quantization method from outside, found through an entry point, makes artifacts that run.

No file of the product knows it. It stands in ``rounding_method.py``, as it would in a package of somebody's own.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import open_artifact
from lucid_deploy.cli import main
from lucid_deploy.errors import LucidError
from lucid_deploy.export.quantize.method import find_method, method_names
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.parity.stored_weights import compare_weights
from tests.conftest import MakeCheckpoint


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "somebody-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n")
    entry = "[lucid_deploy.quantization]\nclipped = tests.extension.rounding_method:METHOD\n"
    (info / "entry_points.txt").write_text(entry)
    monkeypatch.syspath_prepend(tmp_path)


def test_the_method_is_found_and_its_numbers_are_stored(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    assert method_names()[-1] == "clipped"
    checkpoint = make_checkpoint(num_hidden_layers=1)
    words = ["export", str(checkpoint), "-o", str(tmp_path / "artifact"), "--quantize", "int4", "--method", "clipped"]
    result = CliRunner().invoke(main, [*words, "--cache", "growing"])
    assert result.exit_code == 0, result.output
    artifact = open_artifact(tmp_path / "artifact")
    record = artifact.manifest.quantization
    assert record is not None and (record.method.name, record.tool) == ("clipped", "somebody 1.0")
    compare_weights(artifact, Checkpoint(checkpoint))


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(LucidError, match=r"method 'clip' is not known; known are rtn, .*, distill, clipped"):
        find_method("clip")
