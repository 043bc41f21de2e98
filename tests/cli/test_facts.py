"""What commands print about an artifact's quantization and range scan is what its manifest and its files say."""

from __future__ import annotations

from typing import Any

import pytest

from lucid_deploy.cli._facts import show_ranges


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
