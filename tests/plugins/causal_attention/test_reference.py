"""The dense formula against a softmax token by token."""

from __future__ import annotations

import math

import torch

from lucid_deploy.plugins.causal_attention.reference import causal_attention_reference


def test_softmax_over_earlier_tokens() -> None:
    q, k, y = (torch.randn(1, heads, 6, 8, dtype=torch.float64) for heads in (4, 2, 2))
    mask = torch.tensor([[False, True, True, True, False, True]])
    out = causal_attention_reference(q[:, :, 2:], k, y, mask)
    for head in range(4):
        for row in range(2, 6):
            seen = [j for j in range(row + 1) if mask[0, j] or j == row]
            scores = q[0, head, row] @ k[0, head // 2, seen].mT / math.sqrt(8)
            wanted = scores.softmax(0) @ y[0, head // 2, seen]
            torch.testing.assert_close(out[0, head, row - 2], wanted)
