"""The scripts: what they say to trtexec and to Polygraphy, read by stand-ins that print their words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lucid_deploy.packaging.tensorrt.scripts import compare_script, polygraphy_script, resource, trtexec_script
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


def test_trtexec(tmp_path: Path) -> None:
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


def test_polygraphy(tmp_path: Path) -> None:
    [prefill, decode] = told(polygraphy_script(PROFILES), tmp_path)
    assert decode == [word.replace("prefill", "decode") for word in prefill]
    assert prefill[:6] == ["run_polygraphy.py", "convert", "prefill.onnx", "--convert-to", "trt", "-o"]
    assert prefill[prefill.index("--trt-max-shapes") + 1 :][:2] == ["input_ids:[2,16]", "past.0.key:[1,2,0,4]"]


@pytest.mark.parametrize(("words", "runners"), [((), ["--onnxrt"]), (("--trt", "--onnxrt"), ["--trt", "--onnxrt"])])
def test_compare(words: tuple[str, ...], runners: list[str], tmp_path: Path) -> None:
    found = told(compare_script(PROFILES, TOLERANCES), tmp_path, *words)
    assert [call[2] for call in found] == ["prefill.functions.onnx", "prefill.functions.onnx", "decode.functions.onnx"]
    for call, case in zip(found, TOLERANCES, strict=True):
        assert call[call.index("--load-outputs") + 1] == f"{case}_outputs.json"
        assert call[call.index("--atol") + 1 :] == ["logits:0.000123", *runners]


def test_the_rtx_name_is_made_resolvable(tmp_path: Path) -> None:
    """With the variable set, the scripts ask Python where the library is; the stand-in answers with its words."""
    stand_in = '#!/bin/sh\nif [ "$1" = -c ]; then echo "$PWD/libs"; else echo "$LD_LIBRARY_PATH"; fi\n'
    (tmp_path / "libs").mkdir()
    (tmp_path / "libs" / "libtensorrt_rtx.so.1").touch()
    (tmp_path / "python").write_text(stand_in)
    (tmp_path / "build.sh").write_text(polygraphy_script(PROFILES))
    for name in ("python", "build.sh"):
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PYTHON": "./python", "POLYGRAPHY_USE_TENSORRT_RTX": "1", "LD_LIBRARY_PATH": "/else"}
    run = subprocess.run([tmp_path / "build.sh"], env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert run.stdout.splitlines() == [f"{tmp_path}/.libraries:/else"] * 2, run.stderr
    assert (tmp_path / ".libraries" / "libtensorrt_rtx.so").resolve() == tmp_path / "libs" / "libtensorrt_rtx.so.1"


def refusal(text: str, tmp_path: Path, **environment: str) -> str:
    """Return the one line with which a script ends where what it starts is not installed."""
    (tmp_path / "script").write_text(text)
    program = [sys.executable, "-S"] if text.startswith('"""') else ["sh"]  # -S: without installed packages
    given = {**os.environ, "PYTHONPATH": "", **environment}
    run = subprocess.run([*program, tmp_path / "script"], env=given, capture_output=True, text=True, timeout=PATIENCE)
    assert run.returncode and run.stdout == "" and run.stderr.count("\n") == 1, run.stderr
    return run.stderr


def test_what_is_not_installed_is_one_line(tmp_path: Path) -> None:
    assert 'pip install "tensorrt-rtx-cu13>=1.7"' in refusal(resource("build_tensorrt_rtx.py"), tmp_path)
    python = tmp_path / "bare-python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    rtx = {"PYTHON": str(python), "POLYGRAPHY_USE_TENSORRT_RTX": "1"}
    for text in (polygraphy_script(PROFILES), compare_script(PROFILES, TOLERANCES)):
        assert "No module named" in (said := refusal(text, tmp_path, **rtx))
        assert 'Run: pip install "tensorrt-rtx-cu13>=1.7"' in said
    said = refusal(trtexec_script(PROFILES, None, False), tmp_path, TRTEXEC="no-such-trtexec")
    assert "There is no no-such-trtexec. It comes with TensorRT" in said
