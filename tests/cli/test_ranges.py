"""The range scan's result: the largest magnitude is named, and tables fit however many layers there are."""

from __future__ import annotations

from typing import Any

import pytest

from lucid_deploy.cli._ranges import show_ranges


def ranges(layers: int, **changes: Any) -> dict[str, Any]:
    peaks: dict[str, dict[str, float]] = {
        f"layer {i}": {"keys": 1.0 + i, "residual stream": 10.0 + i} for i in range(layers)
    }
    peaks["head"] = {"logits": 7.5}
    scan = {"skipped": False, "prompts": 3, "tokens": 96, "limit": 65504.0, "warnings": [], "peaks": peaks}
    return {**scan, **changes}


def test_one_line_names_the_largest(capsys: pytest.CaptureFixture[str]) -> None:
    show_ranges(ranges(3), table=False)
    assert capsys.readouterr().out == (
        "Range scan over 3 prompts, 96 tokens: the largest magnitude is 12 (layer 2, residual stream); "
        "float16 ends at 65504.\n"
    )


@pytest.mark.parametrize(("layers", "rows"), [(3, 3), (20, 21)])
def test_the_table_has_a_column_per_layer_or_a_row(layers: int, rows: int, capsys: pytest.CaptureFixture[str]) -> None:
    show_ranges(ranges(layers), table=True)
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("│")]) == rows and max(map(len, lines)) <= 120
    assert any("Largest magnitudes" in line for line in lines)


def test_warnings_and_a_skipped_scan_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    show_ranges(ranges(1, warnings=["layer 0 is [near] the end"]), table=False)
    assert "Warning: layer 0 is [near] the end\n" in capsys.readouterr().out
    show_ranges({"skipped": True}, table=True)
    assert capsys.readouterr().out == "Range scan: skipped; values may overflow float16.\n"
