"""What a command says that works in a directory which somebody has removed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from lucid_deploy.artifact import Artifact
from lucid_deploy.cli._working_directory import has_working_directory, without_pytorch_nowhere
from tests.patience import PATIENCE

Exported = Callable[..., tuple[Path, Artifact]]


def run_nowhere(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    program = "import os, sys; os.rmdir(os.getcwd()); from lucid_deploy.cli import main; main(sys.argv[1:])"
    (tmp_path / "gone").mkdir()
    return subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=tmp_path / "gone",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_what_needs_pytorch_is_one_line_of_ours(tmp_path: Path) -> None:
    """It was oneMKL's: "FATAL ERROR: Cannot load libtorch_cpu.so"."""
    done = run_nowhere(tmp_path, "export", "demo", "--output", str(tmp_path / "out"))
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert done.stderr.startswith("Error: The working directory does not exist any more, and PyTorch ends a process")
    assert len(done.stderr.splitlines()) == 1


def test_doctor_blames_no_package(tmp_path: Path) -> None:
    done = run_nowhere(tmp_path, "doctor")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: The working directory does not exist any more. Change to another one.\n"


def test_what_does_without_pytorch_runs(tmp_path: Path, exported: Exported) -> None:
    done = run_nowhere(tmp_path, "inspect", str(exported()[1].directory))
    assert done.returncode == 0 and "decode.onnx" in done.stdout, done.stderr


def test_where_there_is_one_nothing_changes() -> None:
    before = list(sys.meta_path)
    with without_pytorch_nowhere():
        assert sys.meta_path == before and has_working_directory()
