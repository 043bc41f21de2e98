"""The reference implementation against loops in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lucid_deploy.plugins.decode_attention.reference import decode_attention_reference
from tests.plugins.problems import keys

EPS = 1e-5


def one_head(q: np.ndarray, k: np.ndarray, v: np.ndarray, shown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solve all rows of one key/value head in order, then attend with the last token; ``q`` (G, D)."""
    d = k.shape[1]
    k_hat, y = k / np.sqrt((k * k).mean(1, keepdims=True) + EPS), v.copy()
    for i in range(len(k)):
        for j in range(i):
            if shown[i] and shown[j]:
                y[i] -= np.exp(k_hat[i] @ k_hat[j] / math.sqrt(d) - math.sqrt(d)) * y[j]
    seen = [j for j in range(len(k)) if shown[j] or j == len(k) - 1]
    out = []
    for query in q:
        weights = np.exp([query @ k[j] / math.sqrt(d) for j in seen])
        out.append(weights / weights.sum() @ y[seen])
    return np.array(out), y


@pytest.mark.parametrize(("past", "correlation", "groups"), [(0, 0.9, 3), (1, 0.99, 1), (30, 0.9, 3), (30, 1.0, 2)])
def test_decode_attention_matches_loops(past: int, correlation: float, groups: int) -> None:
    k, v = keys(correlation, 2, 2, past + 1, 12), torch.randn(2, 2, past + 1, 12, dtype=torch.float64)
    q = torch.randn(2, 2 * groups, 1, 12, dtype=torch.float64)
    mask = torch.ones(2, past + 1, dtype=torch.bool)
    mask[0, : past // 2] = False
    mask[1, past // 3 :] = False  # the new token is padding too: its Y is its V, and it sees itself
    wanted = [
        [
            one_head(q[b, h * groups : (h + 1) * groups, 0].numpy(), k[b, h].numpy(), v[b, h].numpy(), mask[b].numpy())
            for h in range(2)
        ]
        for b in range(2)
    ]
    y = torch.tensor(np.array([[y for _, y in row] for row in wanted]))
    out, y_new = decode_attention_reference(
        q, k[:, :, past:], v[:, :, past:], k[:, :, :past], y[:, :, :past], mask, EPS
    )
    np.testing.assert_allclose(y_new, y[:, :, past:], rtol=1e-9, atol=1e-11)
    attended = np.array([np.concatenate([o for o, _ in row]) for row in wanted])
    np.testing.assert_allclose(out[:, :, 0], attended, rtol=1e-9, atol=1e-11)
    assert torch.equal(y_new[1], v[1, :, past:])


def test_half_precision_is_computed_in_float32() -> None:
    k, v = keys(0.9, 1, 1, 9, 16).half(), torch.randn(1, 1, 9, 16).half()
    inputs = (torch.randn(1, 2, 1, 16).half(), k[:, :, 8:], v[:, :, 8:], k[:, :, :8], v[:, :, :8])
    half = decode_attention_reference(*inputs, None, EPS)
    single = decode_attention_reference(*(x.float() for x in inputs), None, EPS)
    for got, wanted in zip(half, single, strict=True):
        assert got.dtype == torch.float16 and torch.equal(got, wanted.half())
