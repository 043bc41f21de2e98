"""Artifacts that are damaged, of another version, or made to do harm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.serving.serving_tools import replace_file

Refused = Callable[..., str]


def change_manifest(artifact: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = artifact / "lucid.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.fixture
def refused_run(refused: Refused) -> Refused:
    """Return a function that runs an artifact and expects a refusal."""
    return lambda artifact, *options, **how: refused("run", artifact, "--prompt-ids", "5,6", *options, **how)


def test_a_missing_directory_is_refused(refused_run: Refused, tmp_path: Path) -> None:
    assert "There is no artifact at" in refused_run(tmp_path / "nothing")


def test_a_checkpoint_as_artifact_is_refused(refused_run: Refused, make_checkpoint: Callable[..., Path]) -> None:
    assert "It looks like a checkpoint; export it first" in refused_run(make_checkpoint())


@pytest.mark.parametrize("name", ["weights.bin", "decode.onnx", "config.json"])
def test_a_file_that_was_cut_is_refused(refused_run: Refused, artifact_copy: Path, name: str) -> None:
    path = artifact_copy / name
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    message = refused_run(artifact_copy, exit_code=1)
    assert f"{path} has {size - 1} bytes, its manifest says {size}" in message


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_weights_that_give_nan_are_refused(refused_run: Refused, artifact_copy: Path, runtime: str) -> None:
    weights = artifact_copy / "weights.bin"
    weights.write_bytes(b"\xff" * weights.stat().st_size)
    assert "not finite" in refused_run(artifact_copy, "--runtime", runtime, exit_code=1)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"{}", bytes(4096), b"[" * 200_000),
        b'{"format_version": "1", "format": "lucid-deploy"}',
        b'{"format_version": 0, "format": "lucid-deploy"}',
        b'{"format_version": 1, "format": "other"}',
    ],
    ids=["empty", "cut", "list", "object", "bytes", "deep", "text", "zero", "other"],
)
def test_a_manifest_of_another_format_is_refused(refused_run: Refused, artifact_copy: Path, content: bytes) -> None:
    (artifact_copy / "lucid.json").write_bytes(content)
    assert str(artifact_copy) in refused_run(artifact_copy)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda data: data.pop("graphs"), "graphs"),
        (lambda data: data["files"]["weights.bin"].pop("size"), "size"),
        (lambda data: data["files"].pop("decode.onnx"), "decode.onnx"),
        (lambda data: data["config"].update(max_position_embeddings=-5), "max_position_embeddings"),
        (lambda data: data["config"].update(eos_token_ids=[97]), "97"),
        (lambda data: data["config"].update(use_rope=1), "use_rope"),
    ],
    ids=["no key", "no size", "graph not listed", "a negative size", "a token outside of the vocabulary", "a switch"],
)
def test_a_manifest_with_an_impossible_value_is_refused(
    refused_run: Refused,
    artifact_copy: Path,
    change: Callable[[dict[str, Any]], Any],
    where: str,
) -> None:
    change_manifest(artifact_copy, change)
    message = refused_run(artifact_copy)
    assert "lucid.json is damaged" in message and where in message.partition("is damaged")[2]


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_a_graph_with_weights_in_another_file_is_refused(
    refused_run: Refused,
    artifact_copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    runtime: str,
) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("a runtime was given the graph")

    monkeypatch.setattr("onnxruntime.InferenceSession", loaded)
    monkeypatch.setattr("lucid_deploy.runtimes.torch.artifact_weights.load_artifact_model", loaded)
    model = onnx.load(str(artifact_copy / "decode.onnx"), load_external_data=False)
    external = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    next(entry for entry in external.external_data if entry.key == "location").value = "config.json"
    replace_file(artifact_copy, "decode.onnx", model.SerializeToString())
    message = refused_run(artifact_copy, "--runtime", runtime, exit_code=1)
    assert "lies in 'config.json', outside the artifact's weights.bin" in message


@pytest.mark.parametrize("key", ["offset", "length"])
def test_weights_beyond_the_end_of_the_file_are_refused(refused_run: Refused, artifact_copy: Path, key: str) -> None:
    model = onnx.load(str(artifact_copy / "decode.onnx"), load_external_data=False)
    external = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    next(entry for entry in external.external_data if entry.key == key).value = "999999999"
    replace_file(artifact_copy, "decode.onnx", model.SerializeToString())
    assert "beyond the end of weights.bin" in refused_run(artifact_copy, "--runtime", "torch", exit_code=1)


def test_a_corrupted_graph_is_refused(refused_run: Refused, artifact_copy: Path) -> None:
    content = (artifact_copy / "prefill.onnx").read_bytes()
    replace_file(artifact_copy, "prefill.onnx", content[:500] + b"\xff" * 50 + content[550:])
    message = refused_run(artifact_copy, exit_code=1)
    assert f"{artifact_copy / 'prefill.onnx'} is not a readable ONNX file" in message


def test_a_graph_that_the_runtime_rejects_is_refused(refused_run: Refused, artifact_copy: Path) -> None:
    content = (artifact_copy / "decode.onnx").read_bytes()
    replace_file(artifact_copy, "decode.onnx", content.replace(b"RMSNormalization", b"XMSNormalization"))
    message = refused_run(artifact_copy, exit_code=1, process=True)
    assert "cannot load" in message
    assert "XMSNormalization" in message
