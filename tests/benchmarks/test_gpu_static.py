"""The command that reports the machine code of the shipped kernels, with a stand-in for the compiler."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("triton", reason='compiled kernels are read with Triton: pip install -e ".[kernels]"')

from lucid_deploy.plugins.hosts.triton.aot import triton_version
from lucid_deploy.plugins.hosts.triton.static_report import KernelReport

SOLVE = KernelReport(
    variant="precondition_float32_d128_u4",
    arch=90,
    constants={"BLOCK_D": 128},
    num_warps=4,
    registers=255,
    stack=1008,
    spills=363,
    shared=73860,
    resident_warps=8,
    loop=854,
    loop_spills=17,
    enclosing=464,
    enclosing_spills=21,
    units={"issue": 899.6},
    cycles=899.6,
    bound_by="issue",
    key="0123456789abcdef",
)
COLUMNS = [
    "arch variant warps registers stack shared resident spills in loop around it loop cycles by ratio of memory",
    "90 precondition_float32_d128_u4 4 255 1008 73860 8 363 17 21 854 900 issue",
]


def test_the_table_has_all_columns_on_one_line_and_the_file_a_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = importlib.import_module("gpu_static")
    monkeypatch.setattr(script, "report", lambda archs, select, progress, jobs: [SOLVE])
    target = tmp_path / "results" / "gpu-static.json"
    result = CliRunner().invoke(script.main, ["--json", str(target)], catch_exceptions=False)
    lines = [" ".join(line.replace("┃", " ").replace("│", " ").split()) for line in result.output.splitlines()]
    assert result.exit_code == 0
    for columns in COLUMNS:
        assert columns in lines
    [row] = json.loads(target.read_text(encoding="utf-8"))
    added = {"triton": triton_version(), "over_attention": None, "over_memory": {}}
    assert row == SOLVE.as_json() | added
