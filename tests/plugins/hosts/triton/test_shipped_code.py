"""The machine code of a few shipped kernels for two GPUs: no spill in a hot loop, and what docs/tensorrt.md records.

``make gpu-static`` reads all of them, which takes half an hour. Kernels come from the user's cache if they are there.
"""

from __future__ import annotations

import itertools
import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason='compiled kernels are read with Triton: pip install -e ".[kernels]"')

from lucid_deploy.plugins.hosts.triton import aot
from lucid_deploy.plugins.hosts.triton.static_report import KernelReport, describe

ROOT = Path(__file__).resolve().parents[4]
PAGE, RESULTS = ROOT / "docs" / "tensorrt.md", ROOT / "benchmarks" / "results" / "gpu-static.json"
SOLVE_COLUMNS = "| GPU | type | width | registers | spills | in the loop | instructions | cycles | ratio |\n"
DECODE_COLUMNS = (
    "| GPU | type | width | rows | registers | spills | in the loop | instructions | cycles | tile | of memory |\n"
)
ARCHITECTURES = (80, 90)
SOLVES = ("precondition_float16_d64_u8", "precondition_bfloat16_d128_u8")
DECODING = (
    "decode_split_float32_d128_u4_r16",
    "decode_split_bfloat16_d128_u8_r16",
    "decode_split_float16_d128_u8_r64",
)


@pytest.fixture(scope="module")
def reports() -> dict[tuple[int, str], KernelReport]:
    wanted = (*SOLVES, *DECODING)
    kernels = aot.compile_kernels(ARCHITECTURES, ptx=False, select=lambda variant: variant.name in wanted)
    return {(kernel.arch, kernel.variant): describe(kernel) for kernel in kernels}


def recorded(table: str, more: int = 0) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Return the rows below a heading of columns, by their first columns: GPU, type, width and, when decoding, rows.

    Of the others the five that :func:`facts` returns, and so many more.
    """
    lines = PAGE.read_text(encoding="utf-8").split(table)[1].splitlines()
    table_lines = itertools.takewhile(lambda line: line.startswith("|"), lines)
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table_lines]
    keys = 4 if "rows" in table else 3
    return {tuple(row[:keys]): tuple(row[keys : keys + 5 + more]) for row in rows if re.match(r"\d+\.\d$", row[0])}


def facts(report: KernelReport) -> tuple[str, ...]:
    assert report.cycles is not None
    numbers = (report.registers, report.spills, report.loop_spills, report.loop, round(report.cycles))
    return tuple(map(str, numbers))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", [*SOLVES, *DECODING])
def test_no_hot_loop_spills(arch: int, name: str, reports: dict[tuple[int, str], KernelReport]) -> None:
    found = reports[arch, name]
    assert found.loop_spills == 0 and found.loop > 100 and found.units["tensor"] > 0


@pytest.mark.slow
@pytest.mark.skipif(version("triton") != "3.9.0", reason="docs/tensorrt.md records what Triton 3.9.0 compiles")
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", [*SOLVES, *DECODING])
def test_the_page_says_what_is_compiled(arch: int, name: str, reports: dict[tuple[int, str], KernelReport]) -> None:
    dtype, width, *rows = re.search(r"_(b?float\d+)_d(\d+)_u\d(?:_r(\d+))?", name).groups()  # type: ignore[union-attr]
    key = (str(arch / 10), dtype, width)
    solves = recorded(SOLVE_COLUMNS)
    decoding = recorded(DECODE_COLUMNS)
    wanted = decoding[*key, rows[0]] if rows[0] else solves[key]
    assert facts(reports[arch, name]) == wanted


def rows_of_results() -> dict[tuple[str, str], dict[str, Any]]:
    return {(str(row["arch"] / 10), row["variant"]): row for row in json.loads(RESULTS.read_text(encoding="utf-8"))}


def numbers(row: dict[str, Any]) -> tuple[str, ...]:
    found = (row["registers"], row["spills"], row["loop_spills"], row["loop"], round(row["cycles"]))
    return tuple(map(str, found))


def test_the_page_says_what_the_results_say_and_no_solve_spills_in_its_loop() -> None:
    rows, solves = rows_of_results(), recorded(SOLVE_COLUMNS, more=1)
    assert {gpu for gpu, *_ in solves} == {"8.0", "9.0", "10.0", "12.0"}
    for (gpu, dtype, width), (*said, ratio) in solves.items():
        row = rows[gpu, f"precondition_{dtype}_d{width}_u{4 if dtype == 'float32' else 8}"]
        over = row["over_attention"]
        assert numbers(row) == tuple(said) and row["loop_spills"] == 0
        assert ratio == ("" if over is None else f"{over:.2f}")


def test_the_page_says_what_the_results_say_of_decoding() -> None:
    rows, decoding = rows_of_results(), recorded(DECODE_COLUMNS, more=2)
    assert {gpu for gpu, *_ in decoding} == {"8.0", "9.0", "10.0", "12.0"}
    for (gpu, dtype, width, queries), (*said, constants, share) in decoding.items():
        row = rows[gpu, f"decode_split_{dtype}_d{width}_u{4 if dtype == 'float32' else 8}_r{queries}"]
        assert numbers(row) == tuple(said)
        assert constants.startswith(f"{row['constants']['BLOCK_N']}, {row['num_warps']}, ")
        assert share == " to ".join(f"{each:.2f}" for each in sorted(row["over_memory"].values()))
