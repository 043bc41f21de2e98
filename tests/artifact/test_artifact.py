"""The manifest, and the checks of an artifact's files, from Python; the command line's are in bad_input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lucid_deploy.artifact import Artifact, check_external_data, check_hashes, open_artifact
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.runtimes import open_session

Exported = Callable[..., tuple[Path, Artifact]]


def test_opening_returns_the_manifest_that_was_written(exported: Exported) -> None:
    _, artifact = exported()
    text = (artifact.directory / "lucid.json").read_text()
    assert artifact.manifest.to_json() == text
    assert open_artifact(str(artifact.directory)) == artifact


def test_every_file_but_the_manifest_is_listed(exported: Exported) -> None:
    _, artifact = exported()
    files = {path.name for path in artifact.directory.iterdir()}
    assert files - {"lucid.json"} == artifact.manifest.files.keys()


def test_all_files_that_differ_are_named(artifact_copy: Path) -> None:
    for name in ("weights.bin", "prefill.onnx"):
        path = artifact_copy / name
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    artifact = open_artifact(artifact_copy)
    with pytest.raises(CheckFailed, match=r"sha256 of prefill\.onnx, weights\.bin differs"):
        check_hashes(artifact)


def test_hashing_reports_its_progress(exported: Exported) -> None:
    _, artifact = exported()
    reports: list[tuple[int, int]] = []
    check_hashes(artifact, lambda done, total: reports.append((done, total)))
    total = sum(facts["size"] for facts in artifact.manifest.files.values())
    assert reports[-1] == (total, total)
    assert reports == sorted(reports)


def external() -> TensorProto:
    tensor = TensorProto(name="stolen", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "../secret", "offset": "0", "length": "4"}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(*nodes: onnx.NodeProto, **fields: list[object]) -> onnx.GraphProto:
    return onnx.GraphProto(name="graph", node=nodes, **fields)  # type: ignore[arg-type]


CONSTANT = helper.make_node("Constant", [], ["x"], value=external())
BRANCHES = helper.make_node("If", ["c"], ["x"], then_branch=graph(CONSTANT), else_branch=graph())
FUNCTION = helper.make_function("d", "F", [], ["x"], [CONSTANT], [helper.make_opsetid("", 23)])
SPARSE = onnx.SparseTensorProto(values=external(), dims=[4])


@pytest.mark.parametrize(
    "model",
    [
        onnx.ModelProto(graph=graph(initializer=[external()])),
        onnx.ModelProto(graph=graph(sparse_initializer=[SPARSE])),
        onnx.ModelProto(graph=graph(CONSTANT)),
        onnx.ModelProto(graph=graph(BRANCHES)),
        onnx.ModelProto(graph=graph(), functions=[FUNCTION]),
    ],
    ids=["initializer", "sparse initializer", "constant", "branch", "function"],
)
def test_a_tensor_outside_is_found_wherever_it_hides(tmp_path: Path, model: onnx.ModelProto) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    path = tmp_path / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckFailed, match=r"weight stolen lies in '\.\./secret'"):
        check_external_data(path)


def test_an_artifact_of_format_1_opens_and_runs_as_before(exported, tmp_path) -> None:
    """The manifest is one that was written before layers were described; the graphs have not changed since."""
    _, new = exported()
    directory = Path(shutil.copytree(new.directory, tmp_path / "old"))
    manifest = json.loads((Path(__file__).parent / "format1.json").read_text())
    manifest["files"] = json.loads((directory / "lucid.json").read_text())["files"]
    (directory / "lucid.json").write_text(json.dumps(manifest))
    old = open_artifact(directory)
    described = [
        [(layer.kind, layer.cache, layer.operators, layer.solves) for layer in a.manifest.layers] for a in (old, new)
    ]
    assert described[0] == described[1]
    assert (old.manifest.transposed, old.manifest.float32_head) == (new.manifest.transposed, new.manifest.float32_head)
    ids = np.array([[5, 9, 5, 2]])
    for runtime in ("torch", "onnxruntime"):
        sessions = [open_session(artifact, runtime) for artifact in (old, new)]
        logits = [session.prefill(ids, session.empty_cache()) for session in sessions]
        np.testing.assert_array_equal(*logits)


def test_layers_in_a_manifest_are_read_strictly(artifact_copy) -> None:
    path = artifact_copy / "lucid.json"
    whole = json.loads(path.read_text())
    for change in (
        lambda data: data["layers"].pop(),
        lambda data: data["layers"][0]["cache"][0].update(sort="heap"),
        lambda data: data["layers"][0]["cache"][0].update(sort="ring"),
        lambda data: data["layers"][0]["cache"][0].update(shape=[2, True]),
        lambda data: data["layers"][0]["cache"][1].update(name="key"),
        lambda data: data["layers"][0].update(solves=1),
        lambda data: data["layers"][0].pop("kind"),
        lambda data: data.update(transposed=[1]),
        lambda data: data.update(float32_head="yes"),
    ):
        data = json.loads(json.dumps(whole))
        change(data)
        path.write_text(json.dumps(data))
        with pytest.raises(LucidError, match=r"is damaged|does not fit lucid\.json"):
            open_artifact(artifact_copy)
