"""The model repository for Triton Inference Server, checked against Triton's schema and the files in it."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from lucid_deploy.artifact import STAGES, Artifact, open_artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.packaging.triton import TritonOptions, package_triton
from lucid_deploy.plugins.hosts.tensorrt.build import PLUGIN_ABI
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.tensorrt.limits import choose_limits, profile_shapes
from lucid_deploy.runtimes.tensorrt.manifest import EngineFile, EngineManifest, PluginFile, engine_directory, file_facts

Exported = Callable[..., tuple[Path, Artifact]]
TYPES = {"TYPE_FP32": "tensor(float)", "TYPE_FP16": "tensor(float16)", "TYPE_INT64": "tensor(int64)"}


def read_config(folder: Path) -> Any:
    """Parse config.pbtxt by Triton's own schema; unknown fields and wrong types are errors there."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def type_name(config: Any, value: int) -> str:
    return str(config.input[0].DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[value].name)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_configuration_says_what_the_graphs_take(exported: Exported, tmp_path: Path, dtype: str) -> None:
    _, artifact = exported(dtype)
    made = package_triton(artifact, tmp_path / "models", TritonOptions(name="lucid", instances=2))
    assert [path.name for path in made] == ["lucid-prefill", "lucid-decode"]
    for stage, folder in zip(STAGES, made, strict=True):
        config = read_config(folder)
        assert (config.name, config.backend, config.max_batch_size) == (folder.name, "onnxruntime", 0)
        assert config.default_model_filename == "model.onnx"
        assert config.instance_group[0].count == 2
        session = ort.InferenceSession(str(folder / "1" / "model.onnx"))
        for listed, real in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
            assert [item.name for item in listed] == [item.name for item in real]
            for item, value in zip(listed, real, strict=True):
                assert TYPES[type_name(config, item.data_type)] == value.type
                assert list(item.dims) == [size if isinstance(size, int) else -1 for size in value.shape], stage


def test_the_packaged_graph_computes_what_the_artifact_does(exported: Exported, tmp_path: Path) -> None:
    _, artifact = exported()
    prefill, _ = package_triton(artifact, tmp_path / "models", TritonOptions(name="lucid"))
    ids = np.arange(2, 12)[None]
    own = open_session(artifact)
    expected = own.prefill(ids, own.empty_cache())
    config = artifact.config
    past = np.zeros((1, config.num_key_value_heads, 0, config.head_dim), np.float32)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(10)[None]}
    for layer in range(config.num_hidden_layers):
        feed |= {f"past_key_values.{layer}.key": past, f"past_key_values.{layer}.value": past}
    packaged = ort.InferenceSession(str(prefill / "1" / "model.onnx"))
    np.testing.assert_allclose(packaged.run(["logits"], feed)[0], expected, rtol=0, atol=1e-5)


def with_engines(artifact: Artifact, backend: str = "tensorrt", weightless: bool = False) -> None:
    """Write files that stand in for an artifact's engines: no Triton reads them here."""
    folder = engine_directory(artifact, backend)
    folder.mkdir(parents=True)
    limits = choose_limits(artifact)
    engines = {}
    for stage in STAGES:
        (folder / f"{stage}.engine").write_bytes(stage.encode())
        facts = file_facts(folder / f"{stage}.engine")
        engines[stage] = EngineFile(**facts, profile=profile_shapes(artifact, stage, limits), plugin_layers={})
    (folder / "liblucid.so").write_bytes(b"library")
    plugin = PluginFile(**file_facts(folder / "liblucid.so"), abi=PLUGIN_ABI)
    sources = {
        name: str(facts["sha256"])
        for name, facts in artifact.manifest.files.items()
        if name.endswith(".onnx") or name == "weights.bin"
    }
    manifest = EngineManifest(backend, "10.14", "0", (90,), limits, weightless, sources, plugin, engines)
    (folder / "engines.json").write_text(manifest.to_json())


GPU = TritonOptions(name="lucid", backend="tensorrt", device="gpu")


def test_engines_are_packaged_with_their_plugin(artifact_copy: Path, tmp_path: Path) -> None:
    artifact = open_artifact(artifact_copy)
    with_engines(artifact)
    prefill, decode, script = package_triton(artifact, tmp_path / "models", GPU)
    for stage, folder in (("prefill", prefill), ("decode", decode)):
        config = read_config(folder)
        assert config.backend == "tensorrt"
        assert (folder / "1" / config.default_model_filename).read_bytes() == stage.encode()
        library = tmp_path / "models" / config.parameters["lucid_deploy.tensorrt_plugin"].string_value
        assert library.read_bytes() == b"library"
        assert not (folder / "1" / "weights.bin").exists()
    assert script.stat().st_mode & stat.S_IXUSR
    # Run as a user would, with a stand-in for the server that prints its arguments.
    stand_in = tmp_path / "bin" / "tritonserver"
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    stand_in.chmod(0o755)
    environment = {**os.environ, "PATH": f"{stand_in.parent}:{os.environ['PATH']}"}
    told = subprocess.run([script, "--http-port=1"], env=environment, capture_output=True, text=True, check=True).stdout
    repository = tmp_path / "models"
    assert told.splitlines() == [
        f"--model-repository={repository}",
        f"--backend-config=tensorrt,plugins={repository}/lucid-prefill/plugin/liblucid.so",
        "--http-port=1",
    ]


@pytest.mark.parametrize(
    ("backend", "weightless", "message"),
    [
        (None, False, "has no engines for tensorrt"),
        ("tensorrt-rtx", False, "engines of TensorRT-RTX"),
        ("tensorrt", True, "--weightless"),
    ],
)
def test_engines_that_triton_cannot_load_are_refused(
    artifact_copy: Path, tmp_path: Path, backend: str | None, weightless: bool, message: str
) -> None:
    artifact = open_artifact(artifact_copy)
    if backend is not None:
        with_engines(artifact, backend, weightless)
    with pytest.raises(LucidError, match=message):
        package_triton(artifact, tmp_path / "models", GPU)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "a b"}, "cannot name a model"),
        ({"name": "../up"}, "cannot name a model"),
        ({"name": ""}, "cannot name a model"),
        ({"name": "-x"}, "cannot name a model: .*a letter or a digit first"),
        ({"backend": "tensorrt"}, "--device gpu"),
        ({"threads": 0}, "threads must be 1 to"),
        ({"threads": 2, "device": "gpu"}, "for models on the CPU"),
    ],
)
def test_bad_options_are_refused(exported: Exported, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    _, artifact = exported()
    with pytest.raises(LucidError, match=message):
        package_triton(artifact, tmp_path / "models", TritonOptions(**options))


def test_static_and_bfloat16_artifacts_are_refused_with_the_reason(exported: Exported, tmp_path: Path) -> None:
    _, static = exported(cache="static")
    with pytest.raises(LucidError, match="Export without --cache"):
        package_triton(static, tmp_path / "models")
    _, rounded = exported("float16", cache_dtype="fp8")
    with pytest.raises(LucidError, match=r"cache in fp8, and Triton's tensors have no such type\. Export with"):
        package_triton(rounded, tmp_path / "models", TritonOptions(device="gpu"))
    _, half = exported("bfloat16", num_hidden_layers=1)
    with pytest.raises(LucidError, match="no CPU kernels"):
        package_triton(half, tmp_path / "models")
    prefill, _ = package_triton(half, tmp_path / "models", TritonOptions(name="lucid", device="gpu"))
    assert type_name(read_config(prefill), read_config(prefill).input[3].data_type) == "TYPE_BF16"


def test_other_models_stay_and_own_ones_are_replaced_on_demand(exported: Exported, tmp_path: Path) -> None:
    _, artifact = exported()
    models = tmp_path / "models"
    (models / "other").mkdir(parents=True)
    (models / "lucid-decode").mkdir()
    (models / "lucid-decode" / "precious").touch()
    options = TritonOptions(name="lucid")
    with pytest.raises(LucidError, match="exists already"):
        package_triton(artifact, models, options)
    with pytest.raises(LucidError, match="is not a Triton model"):
        package_triton(artifact, models, TritonOptions(name="lucid", overwrite=True))
    (models / "lucid-decode" / "precious").rename(models / "lucid-decode" / "config.pbtxt")
    package_triton(artifact, models, TritonOptions(name="lucid", overwrite=True))
    assert sorted(path.name for path in models.iterdir()) == ["lucid-decode", "lucid-prefill", "other"]
    assert read_config(models / "lucid-decode").name == "lucid-decode"


def test_models_are_replaced_together_or_not_at_all(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new prefill beside an old decode would give wrong answers."""
    artifact, models, rename = exported()[1], tmp_path / "models", os.rename
    for model in package_triton(artifact, models, TritonOptions(name="lucid")):
        (model / "old").touch()

    def full(source: Path, target: Path) -> None:
        if Path(target) == models / "lucid-decode" and (models / "lucid-prefill").exists() and ".tmp-" in str(source):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, target)

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(LucidError, match="No space left on device"):
        package_triton(artifact, models, TritonOptions(name="lucid", overwrite=True))
    assert sorted(path.name for path in models.iterdir()) == ["lucid-decode", "lucid-prefill"]
    assert all((model / "old").is_file() for model in models.iterdir())
