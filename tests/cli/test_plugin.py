"""``lucid-deploy plugin build``, with stand-ins for the kernels; compiling them is tested elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lucid_deploy.cli import main
from lucid_deploy.plugins.hosts.tensorrt import build as plugin_build
from lucid_deploy.plugins.hosts.triton import aot
from lucid_deploy.plugins.hosts.triton.compiled_kernel import CompiledKernel
from lucid_deploy.runtimes.tensorrt.plugin_library import default_library


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[int, ...]]:
    """Replace compiled kernels by stand-ins, and the cache folder by a new one; return the compiled architectures."""
    asked: list[tuple[int, ...]] = []

    def compile_kernels(archs: tuple[int, ...], select: Any, **_: Any) -> list[CompiledKernel]:
        asked.append(tuple(archs))
        return [
            CompiledKernel(v.name, arch, False, v.kernel, 1000, v.num_warps, dict(v.constants), [], b"stand-in")
            for arch in archs
            for v in [each for each in aot.variants(arch) if select(each)][:3]
        ]

    monkeypatch.setattr(aot, "compile_kernels", compile_kernels)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return asked


def test_the_library_is_where_build_looks_for_it(compiled: list[tuple[int, ...]], tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["plugin", "build", "--json", "-"], catch_exceptions=False)
    facts = json.loads(result.stdout)
    assert compiled == [aot.ARCHITECTURES] and facts["architectures"] == list(aot.ARCHITECTURES)
    assert facts["kernels_size"] == len(b"stand-in") * facts["kernels"] < facts["kernels_size_in_a_wheel"]
    assert facts["library"] == str(default_library()) and tmp_path in default_library().parents
    plugin_build.check_plugin(default_library())


def test_architectures_and_output_are_those_given(compiled: list[tuple[int, ...]], tmp_path: Path) -> None:
    target = tmp_path / "own" / "plugin.so"
    result = CliRunner().invoke(main, ["plugin", "build", "--arch", "8.6, 90", "-o", str(target)])
    assert result.exit_code == 0, result.stderr
    assert compiled == [(86, 90)] and f"Built {target}: 6 kernels" in result.stdout
    plugin_build.check_plugin(target)


@pytest.mark.parametrize(
    ("widths", "said"),
    [
        ("64,wide", "'64,wide' is not a list of whole numbers"),
        ("8", "head width 8 is not supported"),
        ("64,300", "width 300"),
    ],
)
def test_unsupported_head_widths_are_refused(
    widths: str, said: str, compiled: list[tuple[int, ...]], tmp_path: Path
) -> None:
    target = tmp_path / "plugin.so"
    result = CliRunner().invoke(main, ["plugin", "build", "--head-dim", widths, "-o", str(target)])
    assert result.exit_code == 2 and said in result.stderr and "Traceback" not in result.stderr
    assert not target.exists() and not compiled


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_a_device_or_a_pipe_is_not_replaced(target: str, compiled: list[tuple[int, ...]], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # a library is written by a rename, which would replace the pipe
    result = CliRunner().invoke(main, ["plugin", "build", "--target", target, "-o", str(pipe)])
    assert (result.exit_code, compiled) == (2, []) and pipe.is_fifo()
    why = "it is no regular file. Name a file."
    assert result.stderr == f"Error: --output {pipe} cannot be written: {why}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--arch", "8.6,7.0,1.0"],
            "Kernels cannot be compiled for --arch '8.6,7.0,1.0'; choose from 8.0, 8.6, 8.9, 9.0, 10.0, 12.0.",
        ),
        (["--arch", ","], "Kernels cannot be compiled for --arch ','; choose from 8.0, 8.6, 8.9, 9.0, 10.0, 12.0."),
    ],
)
def test_bad_lists_of_architectures_are_refused(words: list[str], said: str, compiled: list[tuple[int, ...]]) -> None:
    result = CliRunner().invoke(main, ["plugin", "build", *words])
    assert result.exit_code == 2 and compiled == []
    assert result.stderr == f"Error: {said}\n"


def test_the_library_for_onnxruntime_is_built_without_pytorch(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from lucid_deploy.cli import main; main()"
    command = [sys.executable, "-c", code, "plugin", "build", "--target", "onnxruntime", "-o", "lib.so"]
    environment = {**os.environ, "CXX": "no-such-compiler"}  # which is looked for after the options were read
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert ran.returncode == 2 and "CXX=no-such-compiler" in ran.stderr and "Traceback" not in ran.stderr


def test_a_missing_compiler_is_reported_before_the_long_compilation(
    compiled: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    result = CliRunner().invoke(main, ["plugin", "build"])
    assert result.exit_code == 2 and "CXX=no-such-compiler" in result.stderr and compiled == []
