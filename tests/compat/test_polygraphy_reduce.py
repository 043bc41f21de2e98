"""Polygraphy's ``debug reduce`` finds a node that is wrong, in the graph of a package."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.packaging.tensorrt import TensorRtOptions, package_tensorrt
from tests.patience import PATIENCE

pytestmark = pytest.mark.compat
pytest.importorskip("polygraphy", reason='packages are written with Polygraphy: pip install -e ".[rtx]"')
POLYGRAPHY = [sys.executable, "-c", "import sys; from polygraphy.tools import main; sys.exit(main())"]
ALL, ALL_INPUTS = "all.json", "all_inputs.json"


def polygraphy(folder: Path, *words: str) -> None:
    given = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*POLYGRAPHY, *words]
    result = subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]


def test_the_wrong_node_is_found(exported: Callable[..., tuple[Path, Artifact]], plugin: Path, tmp_path: Path) -> None:
    """As the package's README describes it; a fault in one of 80 nodes stands in for TensorRT."""
    options = TensorRtOptions(2, 64, 16, plugin)
    folder = package_tensorrt(exported()[1], tmp_path / "package", options)
    graph, recorded = "decode.functions.onnx", ["--load-inputs", "decode_inputs.json"]
    polygraphy(folder, "run", graph, "--onnxrt", "--onnx-outputs", "mark", "all", *recorded, "--save-outputs", ALL)
    polygraphy(folder, "data", "merge", "decode_inputs.json", ALL, "-o", ALL_INPUTS)
    model = onnx.load(str(folder / graph), load_external_data=False)
    wrong = [node for node in model.graph.node if node.op_type == "DecodeAttention"][1]
    [epsilon] = [attribute for attribute in wrong.attribute if attribute.name == "epsilon"]
    epsilon.f = 1.0
    onnx.save(model, str(folder / "faulty.onnx"))
    check = [*POLYGRAPHY, "run", "polygraphy_debug.onnx", "--onnxrt", "--load-inputs", ALL_INPUTS]
    check += ["--load-outputs", ALL, "--rtol", "0", "--atol", "1e-3"]
    given = ["--mode", "bisect", "--load-inputs", ALL_INPUTS]
    polygraphy(folder, "debug", "reduce", "faulty.onnx", "-o", "reduced.onnx", *given, "--check", *check)
    reduced = onnx.load(str(folder / "reduced.onnx"))
    assert [node.name for node in reduced.graph.node] == [wrong.name]
