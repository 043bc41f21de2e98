"""OpenVINO runs inlined graphs as exactly as other runtimes; what it cannot run is refused with the reason."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result

from lucid_deploy.artifact import Artifact
from lucid_deploy.cli import main
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.runtimes import Session, open_session
from lucid_deploy.runtimes.session import Array
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.conftest import MIXED
from tests.patience import PATIENCE

pytest.importorskip("openvino", reason="the extra openvino")


@pytest.mark.parametrize("imported", ["import openvino", "from lucid_deploy.runtimes.openvino.compiled_graph import *"])
def test_our_import_of_openvino_sends_no_telemetry(imported: str, tmp_path: Path) -> None:
    """A plain import sends an event and stores an identifier; ours must not."""
    pytest.importorskip("openvino_telemetry")
    no_network = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy")}
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH") if name in os.environ}
    ours = "compiled_graph" in imported
    program = f"{imported}\n" + (
        "import_openvino().Core()\nimport sys; assert '_telemetry' not in str([*sys.modules])" if ours else ""
    )
    command = [sys.executable, "-c", program]
    environment = {**kept, **no_network, "HOME": str(tmp_path)}  # not CI's, in which OpenVINO sends nothing
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert bool([*tmp_path.iterdir()]) != ours  # the plain import must store a file, or the test proves nothing


Exported = Callable[..., tuple[Path, Artifact]]


SMALL = {**MIXED, "max_position_embeddings": 96}


@pytest.fixture
def small(exported: Exported) -> Artifact:
    """A LUCID layer, one of standard attention and one over a window, all with grouped heads."""
    return exported(inline=True, **SMALL)[1]


def lucid_deploy(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def test_an_artifact_passes_verification_in_openvino(small: Artifact) -> None:
    run = lucid_deploy("verify", small.directory, "--runtime", "openvino", "--quick", "--explain", "--json", "-")
    assert run.exit_code == 0, run.output
    report = json.loads(run.stdout)
    assert report["passed"] and report["runtime"] == "openvino" and report["environment"]["versions"]["openvino"]
    assert {item["schedule"] for item in report["comparisons"]} >= {"one-shot", "chunks", "padded"}
    assert "openvino runs a graph as one piece" in json.dumps(report["explanation"])


def test_threads_that_share_a_session_get_the_same_numbers_as_alone(small: Artifact) -> None:
    """Six threads run on one session at the same time."""
    session = open_session(small, "openvino", threads=1)

    def answered(seed: int) -> Array:
        ids = np.random.default_rng(seed).integers(0, 97, (1, 20 + seed))
        cache = session.empty_cache()
        steps = [session.prefill(ids, cache)]
        for token in range(8):
            steps.append(session.decode(np.array([[token]]), cache))
        return np.concatenate(steps, axis=1)

    alone = [answered(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(answered, [*range(6)] * 8))
    for number, found in enumerate(together):
        np.testing.assert_array_equal(found, alone[number % 6])


@pytest.mark.parametrize("options", [{"dtype": "float16"}, {"cache_dtype": "int8"}], ids=str)
def test_float16_models_and_int8_caches_agree_with_float64(exported: Exported, options: dict[str, str]) -> None:
    """OpenVINO's error against float64 is at most four times onnxruntime's."""
    checkpoint, artifact = exported(inline=True, **options)
    rng = np.random.default_rng(5)
    ids = rng.choice(rng.integers(0, 97, 9), (2, 40))  # repeated tokens: their keys resemble each other
    found = []
    exact = TorchSession(load_model(checkpoint, torch.float64, implementation="reference"))
    for session in (exact, *(open_session(artifact, name) for name in ("openvino", "onnxruntime"))):
        cache = session.empty_cache(2)
        steps = [session.prefill(ids[:, :30], cache)]
        steps += [session.decode(ids[:, column : column + 1], cache) for column in range(30, 40)]
        session.truncate(cache, 20)
        found.append(np.concatenate([*steps, session.prefill_all(ids[:, 20:24], cache)], axis=1, dtype=np.float64))
    ours, other = (np.linalg.norm(logits - found[0]) / np.linalg.norm(found[0]) for logits in found[1:])
    assert 0 < ours <= 4 * other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inline": False}, "they have functions that it does not know. Export without --cache and --inline"),
        ({"dtype": "bfloat16"}, "type is float32 or float16, .* is bfloat16. Export with --dtype float32"),
    ],
    ids=str,
)
def test_what_openvino_cannot_run_is_refused(small: Artifact, changes: dict[str, Any], message: str) -> None:
    other = dataclasses.replace(small, manifest=dataclasses.replace(small.manifest, **changes))
    with pytest.raises(LucidError, match=message):
        open_session(other, "openvino")


def test_a_graph_that_openvino_cannot_load_gives_one_error_line(
    small: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = onnx.helper
    x, y = (make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y"))
    graph = make.make_graph([make.make_node("NoSuch", ["x"], ["y"])], "g", [x], [y])
    onnx.save(make.make_model(graph), tmp_path / "prefill.onnx")
    monkeypatch.setattr(Artifact, "graph_path", lambda self, stage: tmp_path / "prefill.onnx")
    with pytest.raises(CheckFailed, match=r"OpenVINO 2\S+ cannot load .*prefill.onnx: .*NoSuch") as failure:
        open_session(small, "openvino")
    assert "\n" not in str(failure.value)


@pytest.fixture
def static_model(exported: Exported) -> tuple[Path, Artifact]:
    return exported(inline=True, cache="static", opset=23)


@pytest.fixture
def static(static_model: tuple[Path, Artifact]) -> Session[Any]:
    return open_session(static_model[1], "openvino", threads=1)


def close(got: np.ndarray, wanted: np.ndarray, baseline: float) -> None:
    """Allow four times the error of PyTorch in float32, as ``verify`` does."""
    assert np.linalg.norm(got - wanted) <= 4 * baseline


def test_a_static_cache_agrees_with_float64(static_model: tuple[Path, Artifact], static: Session[Any]) -> None:
    """Left padding, a buffer that is used up, prefill after decode, a row that waits."""
    exact, plain = (
        TorchSession(load_model(static_model[0], dtype, implementation="reference"))
        for dtype in (torch.float64, torch.float32)
    )
    sessions = exact, plain, static
    rng = np.random.default_rng(5)
    ids = rng.choice(rng.integers(0, 97, 9), (2, 290))  # repeated tokens: their keys resemble each other
    mask = np.ones(ids.shape, bool)
    mask[0, :6] = False
    mask[1, [245, 250]] = False  # waits
    caches = [session.empty_cache(2) for session in sessions]
    start, parts = 0, []
    for size in (240, *([1] * 20), 7, *([1] * 5)):
        part = slice(start, start + size)
        run = "decode" if size == 1 else "prefill"
        rows = mask[:, part].any(axis=1)
        parts.append(
            [
                getattr(session, run)(ids[:, part], cache, mask=mask[:, part])[rows]
                for session, cache in zip(sessions, caches, strict=True)
            ]
        )
        start += size
    baseline = max(np.linalg.norm(rounded - wanted) for wanted, rounded, _ in parts)
    for wanted, _, found in parts:
        close(found, wanted, baseline)
    for ours, theirs in zip(static.layer_arrays(caches[2]), exact.layer_arrays(caches[0]), strict=True):
        assert ours[0].shape == theirs[0].shape


def test_a_static_cache_of_opset_24_is_refused(exported: Exported) -> None:
    artifact = exported(inline=True, cache="static")[1]
    with pytest.raises(LucidError, match=r"cannot write into the static cache of .*TensorScatter. .* --opset 23\.$"):
        open_session(artifact, "openvino")
