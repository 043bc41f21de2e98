"""The files of an artifact: all of them listed with size and hash, and nothing of the machine that made them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from lucid_deploy.artifact import Artifact, check_hashes

Exported = Callable[..., tuple[Path, Artifact]]


def test_manifest_names_every_file(exported: Exported) -> None:
    _, artifact = exported()
    on_disk = {path.name for path in artifact.directory.iterdir()}
    assert on_disk == {"lucid.json", *artifact.manifest.files}
    data = json.loads((artifact.directory / "lucid.json").read_text())
    assert data["format"] == "lucid-deploy" and data["format_version"] == 2
    assert set(data["versions"]) >= {"lucid-deploy", "torch", "onnx", "onnxscript"}
    check_hashes(artifact)


def test_graphs_hold_no_paths_of_the_exporting_machine(exported: Exported) -> None:
    _, artifact = exported()
    for stage in ("prefill", "decode"):
        content = artifact.graph_path(stage).read_bytes()
        assert b"/lucid_deploy/" not in content and b"site-packages" not in content
