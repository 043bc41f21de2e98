"""The machine code of a few shipped kernels for two GPUs: no spill in a hot loop, and what docs/tensorrt.md records.

``make gpu-static`` reads all of them, which takes half an hour. Kernels come from the user's cache if they are there.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason='compiled kernels are read with Triton: pip install -e ".[kernels]"')

from lucid_deploy.plugins.decode_attention.plan import cache_unit
from lucid_deploy.plugins.hosts.triton import aot
from lucid_deploy.plugins.hosts.triton.static_report import KernelReport, describe, report_keys

ROOT = Path(__file__).resolve().parents[4]
PAGE, RESULTS = ROOT / "docs" / "tensorrt.md", ROOT / "benchmarks" / "results" / "gpu-static.json"
SOLVE_COLUMNS = "| GPU | type | width | registers | spills | in the loop | instructions | cycles | ratio |\n"
DECODE_COLUMNS = (
    "| GPU | type | width | rows | registers | spills | in the loop | instructions | cycles | tile | of memory |\n"
)
AROUND_COLUMNS = "| GPU | type | width | multiples of | tile | loop | around it | spills there |\n"
DELTA_COLUMNS = "| GPU | type | width | registers | spills | in the loop | instructions | cycles | constants |\n"
ARCHITECTURES = (80, 90)
SOLVES = ("precondition_float16_d64_u8", "precondition_bfloat16_d128_u8")
DECODING = (
    "decode_split_float32_d128_u128_r16",
    "decode_split_bfloat16_d128_u128_r16",
    "decode_split_float16_d128_u8_r64",
)
NARROW = "decode_split_bfloat16_d128_u4_r16"  # spilled on both with two warps; not in the page's tables
DELTA = ("delta_state_float32_d128_u4", "delta_state_bfloat16_d128_u4")
TABLES = (*SOLVES, *DECODING, *DELTA)
ALL = (*TABLES, NARROW)
ROWS: list[dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))
COMPILED_BY = {row["triton"] for row in ROWS}


@pytest.fixture(scope="module")
def reports() -> dict[tuple[int, str], KernelReport]:
    kernels = aot.compile_kernels(ARCHITECTURES, ptx=False, select=lambda variant: variant.name in ALL)
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
@pytest.mark.parametrize("name", ALL)
def test_no_hot_loop_spills(arch: int, name: str, reports: dict[tuple[int, str], KernelReport]) -> None:
    found = reports[arch, name]
    assert found.loop_spills == 0 and found.loop > 100 and found.units["tensor"] > 0


@pytest.mark.slow
@pytest.mark.skipif(
    {version("triton")} != COMPILED_BY,
    reason=f"not judged: the results are of Triton {', '.join(COMPILED_BY)}, and {version('triton')} is installed",
)
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", TABLES)
def test_the_page_says_what_is_compiled(arch: int, name: str, reports: dict[tuple[int, str], KernelReport]) -> None:
    dtype, width, *rows = re.search(r"_(b?float\d+)_d(\d+)_u\d+(?:_r(\d+))?", name).groups()  # type: ignore[union-attr]
    key = (str(arch / 10), dtype, width)
    of_width = recorded(DELTA_COLUMNS if name in DELTA else SOLVE_COLUMNS)
    wanted = recorded(DECODE_COLUMNS)[*key, rows[0]] if rows[0] else of_width[key]
    assert facts(reports[arch, name]) == wanted


def rows_of_results() -> dict[tuple[str, str], dict[str, Any]]:
    return {(str(row["arch"] / 10), row["variant"]): row for row in ROWS}


def is_yardstick(row: dict[str, Any]) -> bool:
    return row["variant"].startswith("causal_attention")


def changed(rows: list[dict[str, Any]]) -> list[str]:
    """Return the rows whose kernels would be compiled from other sources or with other options now, by Triton as then.

    So any version of Triton may be installed; what it makes of the sources is not judged.
    """
    [triton] = COMPILED_BY
    now = {arch: report_keys(arch, triton) for arch in aot.ARCHITECTURES}
    return [
        f"{row['variant']} on {row['arch'] / 10}"
        for row in rows
        if row["key"] != now[row["arch"]].get((row["variant"], row["num_warps"]))
    ]


def assert_unchanged(rows: list[dict[str, Any]]) -> None:
    old = changed(rows)
    assert not old, (
        f"{RESULTS.name} is not of these kernels: {len(old)} of {len(rows)} rows, such as {old[0]}, are of other "
        "sources or options. Run `make gpu-static`, and correct the tables of docs/tensorrt.md."
    )


def test_the_results_are_of_these_sources_and_options() -> None:
    """Nothing is compiled: rows have keys of what they were compiled from, the attention beside the solve too."""
    shipped = [row for row in ROWS if not is_yardstick(row)]
    assert len(shipped) == sum(len(aot.variants(arch)) for arch in aot.ARCHITECTURES)
    assert len(ROWS) - len(shipped) == len([row for row in ROWS if row["variant"].startswith("precondition_")])
    assert_unchanged(ROWS)


def test_a_changed_kernel_is_told_in_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source, and a variant's stages, which no other column of a row shows."""
    rows = [row for row in ROWS if row["arch"] == 80 and not is_yardstick(row)]
    variants = aot.variants
    deeper = replace(variants(80)[0], num_stages=variants(80)[0].num_stages + 1)
    with monkeypatch.context() as patch:
        patch.setattr(aot, "variants", lambda arch: [deeper, *variants(arch)[1:]] if arch == 80 else variants(arch))
        assert changed(rows) == [f"{deeper.name} on 8.0"]
    shutil.copytree(aot.PLUGINS, tmp_path / "plugins", ignore=shutil.ignore_patterns("__pycache__", "build"))
    kernel = tmp_path / "plugins" / "shared" / "kernel.py"
    kernel.write_text(kernel.read_text() + "# changed")
    monkeypatch.setattr(aot, "PLUGINS", tmp_path / "plugins")
    with pytest.raises(AssertionError, match=rf"{len(rows)} of {len(rows)} rows, such as .* Run `make gpu-static`"):
        assert_unchanged(rows)


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


def test_the_page_says_which_solves_spill_in_the_loop_around_the_hot_one_and_each_has_such_a_loop() -> None:
    solves = {key: row for key, row in rows_of_results().items() if key[1].startswith("precondition_")}
    assert len(solves) == len(aot.ARCHITECTURES) * 20 and all(row["enclosing"] for row in solves.values())
    spilling = []
    for (gpu, name), row in solves.items():
        if row["enclosing_spills"]:
            dtype, width, unit = re.fullmatch(r"precondition_(\w+)_d(\d+)_u(\d+)", name).groups()  # type: ignore[union-attr]
            tile = f"{row['constants']['BLOCK_M']} × {row['constants']['BLOCK_N']}"
            numbers = (row["loop"], row["enclosing"], row["enclosing_spills"])
            spilling.append((gpu, dtype, width, unit, tile, *map(str, numbers)))
    lines = PAGE.read_text(encoding="utf-8").split(AROUND_COLUMNS)[1].splitlines()
    table = itertools.takewhile(lambda line: line.startswith("|"), lines)
    said = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in table]
    assert said[1:] == spilling
    others = [row for row in ROWS if not row["variant"].startswith("precondition_")]
    assert {row["enclosing"] for row in others} == {0}


def test_the_page_says_what_the_results_say_of_decoding() -> None:
    rows, decoding = rows_of_results(), recorded(DECODE_COLUMNS, more=2)
    assert {gpu for gpu, *_ in decoding} == {"8.0", "9.0", "10.0", "12.0"}
    for (gpu, dtype, width, queries), (*said, constants, share) in decoding.items():
        unit = cache_unit(int(width), dtype, int(queries))
        row = rows[gpu, f"decode_split_{dtype}_d{width}_u{unit}_r{queries}"]
        assert numbers(row) == tuple(said)
        assert constants.startswith(f"{row['constants']['BLOCK_N']}, {row['num_warps']}, ")
        assert share == " to ".join(f"{each:.2f}" for each in sorted(row["over_memory"].values()))


def test_the_page_says_what_the_results_say_of_the_delta_rule() -> None:
    rows, states = rows_of_results(), recorded(DELTA_COLUMNS, more=1)
    assert {gpu for gpu, *_ in states} == {"8.0", "9.0", "10.0", "12.0"}
    for (gpu, dtype, width), (*said, constants) in states.items():
        row = rows[gpu, f"delta_state_{dtype}_d{width}_u4"]
        assert numbers(row) == tuple(said)
        tile = f"{row['constants']['BLOCK_M']} × {row['constants']['BLOCK_N']}"
        assert constants.startswith(f"{tile}, {row['num_warps']}, ")


@pytest.mark.parametrize("arch", aot.ARCHITECTURES)
def test_the_results_have_every_form_for_these_widths_and_none_spills_in_its_loop(arch: int) -> None:
    """Of all that is launched, with narrow loads too; the attention that the solve is compared with may spill."""
    shipped = {variant.name: variant for variant in aot.variants(arch)}
    rows = {name: row for (gpu, name), row in rows_of_results().items() if gpu == str(arch / 10)}
    assert set(shipped) == {name for name in rows if not name.startswith("causal_attention")}
    for name, variant in shipped.items():
        assert rows[name]["constants"] == dict(variant.constants) and rows[name]["num_warps"] == variant.num_warps
        assert rows[name]["loop_spills"] == 0, name


def test_of_the_small_kernels_only_the_one_that_joins_several_tokens_spills_and_in_float32_alone() -> None:
    """Outside of its loop, as docs/tensorrt.md says."""
    small = ("key_norms", "key_tiles", "decode_combine", "verify_combine")
    rows = {key: row for key, row in rows_of_results().items() if key[1].startswith(small)}
    assert len(rows) == 6 * 3 * 12
    spilling = {name for (_, name), row in rows.items() if row["spills"]}
    assert spilling == {"verify_combine_float32_d128_u4", "verify_combine_float32_d256_u4"}
    widest = [row["spills"] for (_, name), row in rows.items() if name == "verify_combine_float32_d256_u4"]
    wide = [row["spills"] for (_, name), row in rows.items() if name == "verify_combine_float32_d128_u4"]
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert f"up to {max(wide)} times at width 128 and {min(widest)} to {max(widest)} times at 256" in page


def test_of_the_delta_rule_s_small_kernels_only_the_one_for_chunks_spills_and_in_float32_alone() -> None:
    """Outside of its loop, as docs/tensorrt.md says."""
    small = ("delta_chunk", "delta_decode")
    spills = {
        key: row["spills"] for key, row in rows_of_results().items() if key[1].startswith(small) and row["spills"]
    }
    of_10, wider, of_12 = (
        ("10.0", "delta_chunk_float32_d128_u4"),
        ("10.0", "delta_chunk_float32_d256_u4"),
        ("12.0", "delta_chunk_float32_d256_u4"),
    )
    assert set(spills) == {of_10, wider, of_12}
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert f"on 10.0 ({spills[of_10]} times at width 128, {spills[wider]} times at 256)" in page
    assert f"on 12.0 ({spills[of_12]} times at 256)" in page
