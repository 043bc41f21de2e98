"""benchmarks/int4_cache.py rounds as it says, and finds what rounding does to logits."""

from __future__ import annotations

import int4_cache
import numpy as np
import pytest
import torch


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("shared", "scales"), [("row", 2 * 6), ("16", 2 * 6 * 4), ("channel", 2 * 64)])
def test_numbers_and_scales(bits: int, shared: str, scales: int) -> None:
    """At most half a step off, the largest of each scale exact, and no more numbers than the bits have."""
    rows = torch.randn(2, 6, 64, generator=torch.Generator().manual_seed(0))
    found, most = int4_cache.stored(rows, (bits, shared)), (1 << (bits - 1)) - 1
    assert found.shape == rows.shape
    exact = torch.isclose(found, rows, rtol=1e-6, atol=0).sum()
    assert exact >= scales
    groups = {"row": (2, 6, 1, 64), "16": (2, 6, 4, 16)}
    parts = [x.mT.unflatten(-1, (1, 6)) if shared == "channel" else x.reshape(groups[shared]) for x in (rows, found)]
    step = parts[0].abs().amax(-1, keepdim=True) / most
    assert ((parts[1] - parts[0]).abs() <= 0.5001 * step).all()
    assert len((parts[1] / step).round().unique()) <= 2 * most + 1
    assert int4_cache.stored(rows, None) is rows


def test_parts_hold_what_was_added() -> None:
    parts = int4_cache.Parts(["same", "turned"])
    exact = torch.randn(1, 8, 5, generator=torch.Generator().manual_seed(0))
    for start in (0, 4):
        chunk = exact[:, start : start + 4]
        parts.add(torch.cat([chunk, chunk, -chunk]))
        parts.close(start + 4)
    assert [(part["from"], part["to"]) for part in parts.facts] == [(0, 4), (4, 8)]
    for part in parts.facts:
        assert part["ways"]["same"] == {"error_median": 0.0, "error_p99": 0.0, "kl_mean": 0.0, "top1": 1.0}
        assert np.isclose(part["ways"]["turned"]["error_median"], 2) and part["ways"]["turned"]["top1"] == 0
