"""Opening engines: every way it can fail is one clear message."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.cli import main
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.tensorrt.backend import load_backend
from lucid_deploy.runtimes.tensorrt.load_engines import check_capability, load_engines, open_tensorrt
from lucid_deploy.runtimes.tensorrt.manifest import open_engines
from tests.patience import PATIENCE
from tests.phase_lines import error_line
from tests.runtimes.tensorrt.fake_gpu import FakeDevice, fake_engines, has_gpu

Exported = Callable[..., tuple[Path, Artifact]]
BLOCK = """
import sys
for name in {names!r}:
    sys.modules[name] = None
from lucid_deploy.cli import main
main()
"""


def command(blocked: tuple[str, ...], *arguments: Any) -> subprocess.CompletedProcess[str]:
    code = BLOCK.format(names=blocked)
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE
    )


def test_engines_for_other_gpus(exported: Exported) -> None:
    artifact, device = exported()[1], FakeDevice()
    manifest = fake_engines(artifact, device)[0].manifest
    check_capability(manifest, device, artifact)
    with pytest.raises(LucidError, match=r"built for compute capability 8\.9, 12\.0; fake has 8\.6"):
        check_capability(replace(manifest, capabilities=(89, 120)), device, artifact)


@pytest.fixture(scope="module")
def built(exported: Exported, plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    pytest.importorskip("tensorrt_rtx", reason='building engines needs TensorRT-RTX: pip install -e ".[rtx]"')
    directory = tmp_path_factory.mktemp("built") / "artifact"
    shutil.copytree(exported()[1].directory, directory)
    result = CliRunner().invoke(main, ["build", str(directory), "--plugin", str(plugin), "--json", "-"])
    assert result.exit_code == 0, result.stderr
    assert set(json.loads(result.stdout)["engines"]) == {"prefill", "decode"}
    return open_artifact(directory)


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
def test_an_engine_that_tensorrt_does_not_read(built: Artifact) -> None:
    """Here it reads none, for want of a driver; what it says is passed on, and the plugin library was registered."""
    backend = load_backend("tensorrt-rtx")
    manifest = open_engines(built, backend.name, backend.version)
    with pytest.raises(CheckFailed, match=r"does not read .*prefill\.engine: .*Build it again: lucid-deploy build"):
        load_engines(built, manifest, backend)


def test_an_engine_that_was_changed(built: Artifact, tmp_path: Path) -> None:
    """Same size, so that only its hash tells."""
    artifact = open_artifact(shutil.copytree(built.directory, tmp_path / "artifact"))
    backend = load_backend("tensorrt-rtx")
    path = artifact.directory / "engines" / "tensorrt-rtx" / "decode.engine"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    manifest = open_engines(artifact, backend.name, backend.version)
    manifest = replace(manifest, engines={"decode": manifest.engines["decode"]})
    with pytest.raises(
        CheckFailed, match=r"decode\.engine was changed after it was built\. Build it again: lucid-deploy"
    ):
        load_engines(artifact, manifest, backend)


def test_weights_are_given_to_engines_that_were_built_without(built: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    real, given, taken = load_backend("tensorrt-rtx"), [], [True]

    class Refitter(SimpleNamespace):
        def refit_cuda_engine(self) -> bool:
            return taken[0]

        def refit_from_bytes(self, model: bytes, path: str) -> bool:
            given.append((len(model) > 1000, path))
            return True

    engine = SimpleNamespace(num_io_tensors=1, get_tensor_name=lambda index: "logits")
    trt = SimpleNamespace(
        __name__="fake",
        ILogger=real.trt.ILogger,
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda content: engine),
        Refitter=lambda engine, logger: Refitter(),
        OnnxParserRefitter=lambda refitter, logger: refitter,
    )
    monkeypatch.setattr("lucid_deploy.runtimes.tensorrt.load_engines.register", lambda library, trt: None)
    backend = replace(real, trt=trt)
    manifest = replace(open_engines(built, real.name, real.version), weightless=True)
    assert load_engines(built, manifest, backend).tensors["decode"] == {"logits"}
    assert given == [(True, str(built.directory / f"{stage}.onnx")) for stage in ("prefill", "decode")]
    taken[0] = False
    with pytest.raises(CheckFailed, match="The prefill engine does not take the weights"):
        load_engines(built, manifest, backend)


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
@pytest.mark.parametrize("name", ["run", "verify"])
def test_without_a_gpu_there_is_one_message(name: str, built: Artifact) -> None:
    pytest.importorskip("cuda.bindings", reason='needs cuda-bindings: pip install -e ".[rtx]"')
    rest = ["--prompt-ids", "5"] if name == "run" else []
    result = CliRunner().invoke(main, [name, str(built.directory), "--runtime", "tensorrt", *rest])
    assert (result.exit_code, result.stdout) == (2, "")
    assert error_line(result.stderr) == (
        "Error: No CUDA driver was found on this machine. Running TensorRT engines needs an NVIDIA GPU and its driver "
        "(libcuda.so.1).\n"
    )


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("cache", ["growing", "static"])
def test_engines_compute_what_onnxruntime_does(cache: str, exported: Exported, tmp_path: Path) -> None:
    """With the real plugin library, which ``lucid-deploy plugin build`` has put where build looks for it."""
    directory = shutil.copytree(exported(cache=cache)[1].directory, tmp_path / "artifact")
    result = CliRunner().invoke(main, ["build", str(directory)])
    assert result.exit_code == 0, result.stderr
    ours, other = open_tensorrt(open_artifact(directory)), open_session(directory)
    ids = np.random.default_rng(0).integers(0, 97, (2, 60))
    caches = [session.empty_cache(2) for session in (ours, other)]
    results = [session.prefill(ids[:, :40], own) for session, own in zip((ours, other), caches, strict=True)]
    np.testing.assert_allclose(*results, rtol=1e-3, atol=1e-3)
    for position in range(40, 60):
        part = ids[:, position : position + 1]
        np.testing.assert_allclose(ours.decode(part, caches[0]), other.decode(part, caches[1]), rtol=1e-3, atol=1e-3)
