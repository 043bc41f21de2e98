"""tract and tinygrad run decode of ``export --inline`` correctly, and refuse prefill and functions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.artifact import Artifact
from tests.compat.decode_case import write_decode_case
from tests.compat.environments import python_with
from tests.compat.test_onnxruntime_versions import ERROR
from tests.compat.tried import TINYGRAD, TRACT

pytestmark = pytest.mark.compat

SCRIPT = Path(__file__).with_name("run_decode.py")
SMALL = {
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
VERSIONS = {"tract": TRACT, "tinygrad": TINYGRAD}
Exported = Callable[..., tuple[Path, Artifact]]


def run(runtime: str, *arguments: object) -> Any:
    """Run the script in the runtime's own environment; tinygrad compiles with clang or does without a compiler."""
    python = python_with(f"{runtime}=={VERSIONS[runtime]}")
    environment = {**os.environ, "DEV": "CPU" if shutil.which("clang") else "PYTHON"}
    command = [str(part) for part in (python, SCRIPT, runtime, *arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["version"] == VERSIONS[runtime]
    return found


def test_tract_decodes(exported: Exported, tmp_path: Path) -> None:
    checkpoint, artifact = exported(inline=True)
    write_decode_case(checkpoint, artifact.directory, tmp_path / "case.npz", tokens=12, batch=2)
    assert run("tract", artifact.directory, tmp_path / "case.npz")["error"] <= ERROR


def test_tinygrad_decodes(exported: Exported, tmp_path: Path) -> None:
    """A tiny layer and one token: without a compiler tinygrad interprets each operation."""
    checkpoint, artifact = exported(inline=True, **SMALL)
    write_decode_case(checkpoint, artifact.directory, tmp_path / "case.npz", tokens=1, batch=1)
    assert run("tinygrad", artifact.directory, tmp_path / "case.npz")["error"] <= ERROR


@pytest.mark.parametrize(
    ("runtime", "inline", "stage", "reason"),
    [
        ("tract", True, "prefill", "Can't divide 2097152 by"),
        ("tract", False, "decode", "Unimplemented(DecodeAttention)"),
        ("tinygrad", True, "prefill", "no Loop"),
        ("tinygrad", False, "decode", "'ai.lucid' is not a valid Domain"),
    ],
)
def test_prefill_and_functions_refused(exported: Exported, runtime: str, inline: bool, stage: str, reason: str) -> None:
    assert reason in run(runtime, exported(inline=inline)[1].directory, stage)["refused"]
