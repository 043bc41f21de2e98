"""What commands print about an artifact's quantization and range scan is what its manifest and its files say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.cli._facts import show_quantization, show_ranges
from lucid_deploy.runtimes.inspection import compression

Made = Callable[..., tuple[Path, Artifact]]


def test_quantization_in_a_line(quantized: Made, capsys: pytest.CaptureFixture[str]) -> None:
    _, artifact = quantized("int8")
    record, smaller = artifact.manifest.quantization, compression(artifact)
    assert record is not None and (record.scheme, record.block_size) == ("int8", 32)
    assert 1 < smaller < 4, "int8 and its scales, beside a float embedding"
    for count, shown in ((0, "nothing"), (2, "w0, w1"), (6, "w0, w1, w2, w3 and 2 more")):
        kept = tuple(f"model.w{i}.weight" for i in range(count))
        show_quantization(replace(record, kept=kept), "float32", smaller)
        line = capsys.readouterr().out
        assert line.startswith(f"Quantized {len(record.tensors)} weights to int8 in blocks of 32 ({record.format};")
        assert f"kept in float32: {shown}. The weights are {smaller:.1f} times smaller than" in line


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


def test_warnings_and_a_skipped_scan_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    show_ranges(ranges(1, warnings=["layer 0 is [near] the end"]), table=False)
    assert "Warning: layer 0 is [near] the end\n" in capsys.readouterr().out
    show_ranges({"skipped": True}, table=True)
    assert capsys.readouterr().out == "Range scan: skipped; values may overflow float16.\n"
