"""Weights outside a graph's file: their shapes, and files that are links."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact, check_external_data, open_artifact
from lucid_deploy.cli import main
from lucid_deploy.errors import CheckFailed, LucidError

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.mark.parametrize(
    ("dims", "asks"),
    [([2**31, 2**31], str(2**64)), ([2**62, 2**62], str(2**126)), ([-5, 3], "another number"), ([7], "28")],
)
def test_a_shape_that_does_not_fit_the_bytes_is_refused(artifact_copy: Path, dims: list[int], asks: str) -> None:
    for stage in ("prefill", "decode"):
        path = artifact_copy / f"{stage}.onnx"
        graph = onnx.load(path, load_external_data=False)
        weight = next(tensor for tensor in graph.graph.initializer if tensor.external_data)
        weight.dims[:] = dims
        path.write_bytes(graph.SerializeToString())
        manifest = json.loads((artifact_copy / "lucid.json").read_text())
        facts = {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        manifest["files"][path.name] = facts
        (artifact_copy / "lucid.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckFailed, match=f"weight .* its shape .* needs {asks}. Export it again."):
        open_artifact(artifact_copy)


@pytest.mark.parametrize("location", ["../../etc/passwd", "/etc/passwd", "config.json"])
def test_weights_in_another_file_are_refused(artifact_copy: Path, location: str) -> None:
    path = artifact_copy / "decode.onnx"
    graph = onnx.load(path, load_external_data=False)
    weight = next(tensor for tensor in graph.graph.initializer if tensor.external_data)
    next(entry for entry in weight.external_data if entry.key == "location").value = location
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(CheckFailed, match=f"lies in '{location}', outside the artifact's weights.bin"):
        check_external_data(path)


@pytest.mark.parametrize("form", ["matmulnbits", "qdq"])
def test_quantized_weights_have_the_bytes_of_their_shapes(
    quantized: Callable[..., tuple[Path, Artifact]], form: str
) -> None:
    assert open_artifact(quantized("int4", form)[1].directory).weights("decode")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", "1e400"),
        ("rope_theta", "Infinity"),
        ("rope_theta", "-1e999"),
        ("rms_norm_eps", "NaN"),
        ("opset", "1e400"),
    ],
)
def test_numbers_that_are_not_finite_are_refused(artifact_copy: Path, key: str, value: str) -> None:
    import re

    manifest = artifact_copy / "lucid.json"
    text, found = re.subn(rf'"{key}": [\d.e-]+', f'"{key}": {value}', manifest.read_text(), count=1)
    assert found
    manifest.write_text(text)
    with pytest.raises(LucidError, match=r"is not a JSON number|is too large for a number"):
        open_artifact(artifact_copy)


def test_an_artifact_of_links_as_in_the_hub_cache_runs(exported: Exported, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in exported()[1].directory.iterdir():
        shutil.copy(path, blobs / path.name[::-1])
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name[::-1])
    outputs = []
    for directory in (exported()[1].directory, snapshot):
        for runtime in ("onnxruntime", "torch"):
            asked = ["run", str(directory), "--prompt-ids", "5,9,7", "-n", "4", "--ignore-eos", "--runtime", runtime]
            result = CliRunner().invoke(main, [*asked, "--check"])
            assert result.exit_code == 0, result.stderr
            outputs.append(result.stdout)
    assert outputs[:2] == outputs[2:]
    (blobs / "weights.bin"[::-1]).unlink()
    with pytest.raises(CheckFailed, match=r"weights\.bin is missing"):
        open_artifact(snapshot)
