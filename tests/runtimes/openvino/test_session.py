"""OpenVINO runs inlined graphs: verified, with the answers of onnxruntime; what it cannot run is refused by name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
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
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.openvino.session import OpenVinoSession
from lucid_deploy.runtimes.session import Array
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.conftest import MIXED

pytest.importorskip("openvino", reason='needs OpenVINO: pip install -e ".[openvino]"')
Exported = Callable[..., tuple[Path, Artifact]]
SMALL = {**MIXED, "max_position_embeddings": 96}


@pytest.fixture
def small(exported: Exported) -> Artifact:
    """A LUCID layer, one of standard attention and one over a window, all with grouped heads."""
    return exported(inline=True, **SMALL)[1]


def lucid_deploy(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def test_it_is_verified(small: Artifact) -> None:
    run = lucid_deploy("verify", small.directory, "--runtime", "openvino", "--quick", "--explain", "--json", "-")
    assert run.exit_code == 0, run.output
    report = json.loads(run.stdout)
    assert report["passed"] and report["runtime"] == "openvino" and report["environment"]["versions"]["openvino"]
    assert {item["schedule"] for item in report["comparisons"]} >= {"one-shot", "chunks", "padded"}
    assert "openvino runs a graph as one piece" in json.dumps(report["explanation"])


def test_verification_finds_a_fault_in_it(small: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded tokens are rotated as if they stood one place further on."""

    class Misplaced(OpenVinoSession):
        def _run(self, stage: str, tokens: Any, *rest: Any) -> Any:
            return super()._run(stage, replace(tokens, positions=tokens.positions + (stage == "decode")), *rest)

    monkeypatch.setattr("lucid_deploy.runtimes.openvino.session.OpenVinoSession", Misplaced)
    run = lucid_deploy("verify", small.directory, "--runtime", "openvino", "--quick", "--steps", "2")
    assert run.exit_code == 1 and "layer 0 K" in run.stderr


def test_prompts_of_growing_lengths_are_right(demo: Callable[..., Artifact]) -> None:
    """OpenVINO's own defaults give logits that are off by 8 from the third prompt on."""
    artifact = demo(inline=True)
    ours, other = (open_session(artifact, name, threads=1) for name in ("openvino", "onnxruntime"))
    for length in range(35, 41):
        ids = np.random.default_rng(length).integers(3, 120, (1, length))
        found, expected = ours.empty_cache(), other.empty_cache()
        np.testing.assert_allclose(ours.prefill(ids, found), other.prefill(ids, expected), rtol=1e-3, atol=1e-3)
        for mine, theirs in zip(ours.layer_arrays(found), other.layer_arrays(expected), strict=True):
            np.testing.assert_allclose(mine[1], theirs[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"cache": "static", "opset": 23}], ids=["growing", "static"])
def test_threads_take_turns(exported: Exported, options: dict[str, Any]) -> None:
    """Each of them gets the numbers that it gets alone."""
    session = open_session(exported(inline=True, **SMALL, **options)[1], "openvino", threads=1)

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


def test_it_answers_as_onnxruntime_does(small: Artifact) -> None:
    asked = ["run", small.directory, "--prompt-ids", "5,9,9,9,40,3", "-n", "12", "--ignore-eos", "--json"]
    ours = json.loads(lucid_deploy(*asked, "--runtime", "openvino", "--threads", 1).stdout)
    other = json.loads(lucid_deploy(*asked, "--runtime", "onnxruntime").stdout)
    assert ours["ids"] == other["ids"] and len(ours["ids"]) == 12
    assert (ours["runtime"], ours["provider"], ours["kernels"]) == ("openvino", None, None)


@pytest.mark.parametrize("options", [{"dtype": "float16"}, {"cache_dtype": "int8"}, {"logits": "all"}], ids=str)
def test_types(exported: Exported, options: dict[str, str]) -> None:
    """Its error against float64 is at most a small factor of onnxruntime's."""
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
        ({"inline": False}, "they have functions that it does not know. Export with --inline, or choose another"),
        ({"dtype": "bfloat16"}, "runs models in float32 or float16, and .* has bfloat16. Export with --dtype float32"),
    ],
    ids=str,
)
def test_what_it_cannot_run_is_refused(small: Artifact, changes: dict[str, Any], message: str) -> None:
    other = dataclasses.replace(small, manifest=dataclasses.replace(small.manifest, **changes))
    with pytest.raises(LucidError, match=message):
        open_session(other, "openvino")


def test_a_graph_that_it_cannot_load_is_one_line(
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
