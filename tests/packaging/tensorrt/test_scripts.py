"""The arguments that the scripts pass to trtexec and Polygraphy, which stand-ins print."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from lucid_deploy.packaging.tensorrt.scripts import compare_script, polygraphy_script, trtexec_script
from lucid_deploy.runtimes.tensorrt.limits import Range
from tests.patience import PATIENCE

PROFILE: dict[str, Range] = {"input_ids": ((1, 1), (2, 8), (2, 16)), "past.0.key": ((1, 2, 0, 4),) * 3}
PROFILES = {"prefill": PROFILE, "decode": PROFILE}
TOLERANCES = {case: {"logits": 0.000123456} for case in ("prefill", "prefill_past", "decode")}


def told(text: str, tmp_path: Path, *words: str, **environment: str) -> list[list[str]]:
    """Run a script from another folder; return the words of each program that it started."""
    stand_in = tmp_path / "stand-in"
    stand_in.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done; echo --end--\n')
    script = tmp_path / "script.sh"
    script.write_text(text)
    for path in (stand_in, script):
        path.chmod(0o755)
    given = {**os.environ, "TRTEXEC": str(stand_in), "PYTHON": str(stand_in), **environment}
    run = subprocess.run([script, *words], env=given, capture_output=True, text=True, cwd="/", timeout=PATIENCE)
    assert run.returncode == 0, run.stderr
    return [part.splitlines() for part in run.stdout.split("--end--\n") if part]


def test_trtexec_gets_shapes_and_the_plugin(tmp_path: Path) -> None:
    prefill, decode = told(trtexec_script(PROFILES, "lib.so", False), tmp_path, "--verbose")
    assert decode == [word.replace("prefill", "decode") for word in prefill]
    assert prefill == [
        "--onnx=prefill.onnx",
        "--saveEngine=prefill.engine",
        "--skipInference",
        "--profilingVerbosity=detailed",
        "--dynamicPlugins=./lib.so",
        "--minShapes=input_ids:1x1,past.0.key:1x2x0x4",
        "--optShapes=input_ids:2x8,past.0.key:1x2x0x4",
        "--maxShapes=input_ids:2x16,past.0.key:1x2x0x4",
        "--stronglyTyped",
        "--noTF32",
        "--verbose",
    ]


def test_polygraphy_gets_shapes(tmp_path: Path) -> None:
    [prefill, decode] = told(polygraphy_script(PROFILES), tmp_path)
    assert decode == [word.replace("prefill", "decode") for word in prefill]
    assert prefill[:6] == ["run_polygraphy.py", "convert", "prefill.onnx", "--convert-to", "trt", "-o"]
    assert prefill[prefill.index("--trt-max-shapes") + 1 :][:2] == ["input_ids:[2,16]", "past.0.key:[1,2,0,4]"]


@pytest.mark.parametrize(("words", "runners"), [((), ["--onnxrt"]), (("--trt", "--onnxrt"), ["--trt", "--onnxrt"])])
def test_compare_gets_recorded_files_and_tolerances(words: tuple[str, ...], runners: list[str], tmp_path: Path) -> None:
    found = told(compare_script(PROFILES, TOLERANCES), tmp_path, *words)
    assert [call[2] for call in found] == ["prefill.functions.onnx", "prefill.functions.onnx", "decode.functions.onnx"]
    for call, case in zip(found, TOLERANCES, strict=True):
        assert call[call.index("--load-outputs") + 1] == f"{case}_outputs.json"
        assert call[call.index("--atol") + 1 :] == ["logits:0.000123", *runners]
