"""The plugin library inside TensorRT-RTX on a machine without a GPU: registry, ONNX parser, engine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE

pytestmark = pytest.mark.tensorrt
pytest.importorskip("tensorrt_rtx", reason='building engines needs TensorRT-RTX: pip install -e ".[rtx]"')


def build_engine(library, dtype, width):
    script = Path(__file__).with_name("build_engine.py")
    command = [sys.executable, str(script), str(library), dtype, str(width)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize(("dtype", "width"), [("FLOAT16", 68), ("BFLOAT16", 128), ("FLOAT", 36)])
def test_an_engine_with_all_plugins_is_built(dtype, width, tools):
    result = build_engine(tools.plugin, dtype, width)
    assert result["errors"] == []
    assert result["layers"] == dict.fromkeys(("solve", "decode", "delta"), "LayerType.PLUGIN_V3")
    assert result["engine"] > 0 and result["stored"] == ["Precondition", "DecodeAttention", "DeltaRule"]


def test_a_width_that_the_kernels_lack_fails_the_build_with_our_message(tools):
    result = build_engine(tools.plugin, "FLOAT16", 66)
    assert result["engine"] == 0
    assert any("lucid plugin: head width 66 is not supported" in error for error in result["errors"])
