"""The package for TensorRT's tools: files, facts, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from lucid_deploy.artifact import STAGES, Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.packaging.tensorrt import TensorRtOptions, package_tensorrt
from tests.packaging.tensorrt.conftest import LIMITS
from tests.patience import PATIENCE

Exported = Callable[..., tuple[Path, Artifact]]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(preloaded: Path) -> Run:
    """Return a function that runs a command in a folder; ``python`` has onnxruntime imported, and nothing of ours."""

    def call(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        given = {**os.environ, "PYTHON": str(preloaded / "python"), **environment}
        return subprocess.run(words, cwd=folder, env=given, capture_output=True, text=True, timeout=PATIENCE)

    return call


@pytest.fixture
def polygraphy(run: Run, preloaded: Path) -> Callable[..., str]:
    """Return a function that runs Polygraphy's own command line, and returns its output."""

    def call(folder: Path, *words: str) -> str:
        program = "import sys; from polygraphy.tools import main; sys.exit(main())"
        result = run(folder, str(preloaded / "python"), "-c", program, *words)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr

    return call


def test_a_package_has_all_files_and_facts(package: Path, exported: Exported) -> None:
    names = {path.name for path in package.iterdir()}
    recorded = {
        f"{case}_{kind}.json" for case in ("prefill", "prefill_past", "decode") for kind in ("inputs", "outputs")
    }
    graphs = {f"{stage}{form}.onnx" for stage in STAGES for form in ("", ".functions")}
    scripts = {"build.sh", "build_polygraphy.sh", "compare.sh"}
    python = {"run_polygraphy.py", "no_tf32.py", "data_loader.py", "build_tensorrt_rtx.py"}
    rest = {"README.md", "profiles.json", "weights.bin", "liblucid_tensorrt.so"}
    assert names == recorded | graphs | scripts | python | rest
    assert all(os.access(package / name, os.X_OK) for name in scripts)
    weights = package / "weights.bin"
    assert weights.stat().st_nlink == 1 and not weights.is_symlink()
    assert weights.read_bytes() == exported()[1].path("weights.bin").read_bytes()
    facts = json.loads((package / "profiles.json").read_text())
    assert facts["profiles"]["prefill"]["input_ids"] == {"min": [1, 1], "opt": [2, 16], "max": [2, 16]}
    assert facts["plugin_nodes"] == {"prefill": {"Precondition": 2}, "decode": {"DecodeAttention": 2}}
    readme = (package / "README.md").read_text()
    assert "$" not in readme and all(name in readme for name in names - recorded - {"README.md"})


def test_polygraphy_compares_with_the_golden_outputs(package: Path, run: Run) -> None:
    result = run(package, "./compare.sh", "--onnxrt")
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("All outputs matched") == 3


def readme_commands(package: Path) -> list[list[str]]:
    """Return the words of each command of the README."""
    text = (package / "README.md").read_text().replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in re.findall(r"^    (\S.*)$", text, re.M)]


def test_commands_of_the_readme_pass(
    demo: Callable[..., Artifact], plugin: Path, polygraphy: Callable[..., str], tmp_path: Path
) -> None:
    """Polygraphy's commands that need no TensorRT, unchanged, on a trained model, whose numbers are not all small."""
    folder = package_tensorrt(demo(logits="last"), tmp_path / "package", TensorRtOptions(plugin=plugin, max_batch=2))
    given = [words[1:] for words in readme_commands(folder) if words[0] == "polygraphy" and "reduce" not in words]
    assert [words[0] for words in given] == ["inspect", "surgeon", "run", "run", "data"]
    for words in given:
        polygraphy(folder, *words)


def test_polygraphy_finds_a_wrong_graph(package: Path, run: Run, tmp_path: Path) -> None:
    """One layer leaves out the solve: Y is V."""
    copy = shutil.copytree(package, tmp_path / "copy")
    model = onnx.load(str(copy / "prefill.functions.onnx"), load_external_data=False)
    node = [node for node in model.graph.node if node.op_type == "Precondition"][1]
    node.CopyFrom(onnx.helper.make_node("Identity", [node.input[1]], list(node.output)))
    onnx.save(model, str(copy / "prefill.functions.onnx"))
    result = run(copy, "./compare.sh")
    assert result.returncode == 1 and "FAILED | Output: 'present.1.value'" in result.stdout


ALONE = """
import importlib.abc, runpy, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("lucid_deploy", "torch", "polygraphy"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
script, sys.argv = sys.argv[1], sys.argv[1:]
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.tensorrt
def test_tensorrt_rtx_alone_builds_both_engines(package: Path, run: Run, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason='building engines needs TensorRT-RTX: pip install -e ".[rtx]"')
    result = run(package, sys.executable, "-c", ALONE, "build_tensorrt_rtx.py", str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("2 layers computed by the plugin") == 2
    for stage, operator in (("prefill", b"Precondition"), ("decode", b"DecodeAttention")):
        assert operator in (tmp_path / f"{stage}.engine").read_bytes()


@pytest.mark.tensorrt
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_polygraphy_builds_both_engines(dtype: str, exported: Exported, plugin: Path, run: Run, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason='building engines needs TensorRT-RTX: pip install -e ".[rtx]"')
    options = TensorRtOptions(plugin=plugin, **LIMITS)
    folder = package_tensorrt(exported(dtype)[1], tmp_path / "package", options)
    result = run(folder, "./build_polygraphy.sh", POLYGRAPHY_USE_TENSORRT_RTX="1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "TF32" not in result.stdout.split("Flags")[1].split("]")[0]
    for stage, operator in (("prefill", b"Precondition"), ("decode", b"DecodeAttention")):
        assert operator in (folder / f"{stage}.engine").read_bytes()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"cache": "static"}, {}, "static cache.*share memory.*Export without --cache"),
        ({"inline": True}, {}, "were inlined. Export without --cache and --inline"),
        ({"dtype": "float16", "cache_dtype": "fp8"}, {}, "cache in fp8, which the arrays .* --cache-dtype auto"),
        ({}, {"max_context": 4096}, "--max-context 4096 is more than the model was made for"),
        ({}, {"plugin": Path("nowhere.so")}, "There is no plugin library .*nowhere.so. Run: lucid-deploy plugin build"),
    ],
    ids=str,
)
def test_artifacts_and_options_that_do_not_fit_are_refused(
    changes: dict[str, Any], options: dict[str, Any], message: str, exported: Exported, tmp_path: Path
) -> None:
    with pytest.raises(LucidError, match=message) as raised:
        package_tensorrt(exported(**changes)[1], tmp_path / "deep" / "package", TensorRtOptions(**options))
    assert "\n" not in str(raised.value) and not any(tmp_path.iterdir())


def test_an_existing_package_is_replaced_only_on_demand(
    exported: Exported, plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, artifact = exported()
    target = tmp_path / "package"
    target.mkdir()
    (target / "precious").touch()
    with pytest.raises(LucidError, match="exists already"):
        package_tensorrt(artifact, target, TensorRtOptions(plugin=plugin, **LIMITS))
    replacing = TensorRtOptions(plugin=plugin, overwrite=True, **LIMITS)
    with pytest.raises(LucidError, match="is not a package for TensorRT"):
        package_tensorrt(artifact, target, replacing)
    (target / "precious").rename(target / "profiles.json")
    with monkeypatch.context() as within:
        within.chdir(target)
        with pytest.raises(LucidError, match=r"^\. is or holds the current folder"):
            package_tensorrt(artifact, ".", replacing)
    package_tensorrt(artifact, target, replacing)
    assert json.loads((target / "profiles.json").read_text())["format_version"] == 1
