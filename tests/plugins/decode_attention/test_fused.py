"""Both versions of decode attention against prefill of one token."""

from __future__ import annotations

import pytest
import torch

from lucid_deploy.plugins.causal_attention.torch_operator import causal_attention
from lucid_deploy.plugins.decode_attention.torch_operator import decode_attention
from lucid_deploy.plugins.precondition.torch_operator import precondition
from tests.plugins.problems import keys


@pytest.mark.parametrize("implementation", ["reference", "fused"])
@pytest.mark.parametrize("past", [0, 1, 64, 300])
@pytest.mark.parametrize("groups", [1, 4])
def test_decode_matches_prefill_of_one_token(implementation: str, past: int, groups: int) -> None:
    k, v = keys(0.95, 2, 2, past + 1, 20), torch.randn(2, 2, past + 1, 20, dtype=torch.float64)
    q = torch.randn(2, 2 * groups, 1, 20, dtype=torch.float64)
    mask = torch.ones(2, past + 1, dtype=torch.bool)
    mask[1, : past // 3] = False
    y = precondition(k, v, mask=mask, implementation="reference")
    wanted = causal_attention(q, k, y, mask)
    out, y_new = decode_attention(
        q, k[:, :, -1:], v[:, :, -1:], k[:, :, :-1], y[:, :, :-1], mask, implementation=implementation
    )
    torch.testing.assert_close(y_new, y[:, :, -1:], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(out, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("implementation", ["reference", "fused"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("past", "n"), [(0, 1), (0, 8), (5, 2), (70, 16)])
def test_several_tokens_match_prefill(implementation: str, past: int, n: int, training: bool) -> None:
    k, v = keys(0.95, 2, 2, past + n, 20), torch.randn(2, 2, past + n, 20, dtype=torch.float64)
    q = torch.randn(2, 6, n, 20, dtype=torch.float64)
    mask = torch.ones(2, past + n, dtype=torch.bool)
    mask[0, : past // 3] = False
    mask[1, past + n - n // 2 :] = False
    options = {"implementation": "reference", "training_diagonal": training}
    y = precondition(k, v, mask=mask, **options)
    arguments = (q, k[:, :, past:], v[:, :, past:], k[:, :, :past], y[:, :, :past], mask)
    out, y_new = decode_attention(*arguments, **{**options, "implementation": implementation})
    torch.testing.assert_close(y_new, y[:, :, past:], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(out, causal_attention(q, k, y, mask), rtol=1e-9, atol=1e-11)


def test_decode_with_large_scores_does_not_overflow() -> None:
    q = torch.full((1, 1, 1, 16), 60.0)
    k = torch.full((1, 1, 3, 16), 60.0)
    out, _ = decode_attention(q, k[:, :, :1], k[:, :, :1], k, torch.ones_like(k))
    assert out.isfinite().all()
