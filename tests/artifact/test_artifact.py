"""The manifest, and the checks of an artifact's files, from Python; the command line's are in bad_input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from lucid_deploy.artifact import Artifact, check_external_data, check_hashes, open_artifact
from lucid_deploy.errors import CheckFailed

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
