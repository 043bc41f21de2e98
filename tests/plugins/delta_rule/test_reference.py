"""The recurrence against transformers', and against what it must do on paper."""

from __future__ import annotations

import pytest
import torch

from lucid_deploy.plugins.delta_rule import delta_rule
from tests.plugins.delta_rule.oracles import token_by_token
from tests.plugins.delta_rule.problems import BETAS, DECAYS, in_type, inputs
from tests.plugins.problems import relative


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("tokens", [1, 40])
def test_it_is_transformers_recurrence(tokens: int, beta: str, decay: str) -> None:
    """Theirs is float32, and so is the reference on float32 tensors: they differ in the order of sums."""
    given = in_type(inputs(tokens, 0.9, beta, decay), torch.float32)
    for ours, theirs in zip(delta_rule(*given, 0.3, "reference"), token_by_token(given, 0.3), strict=True):
        assert relative(ours, theirs) < 16 * torch.finfo(torch.float32).eps


def test_a_key_with_beta_one_is_then_known() -> None:
    """S_tᵀ k_t = v_t, whatever the state was."""
    _, key, value, log_decay, beta, state = inputs(9, 0.9, decay="fast")
    output, _ = delta_rule(key, key, value, log_decay, torch.ones_like(beta), state, 1.0, "reference")
    torch.testing.assert_close(output, value, rtol=1e-12, atol=1e-12)


def test_decay_to_nothing_leaves_one_token() -> None:
    query, key, value, log_decay, beta, state = inputs(9)
    log_decay[:, :, -1] = -torch.inf
    _, found = delta_rule(query, key, value, log_decay, beta, state, 1.0, "reference")
    last = beta[:, :, -1, None, None] * key[:, :, -1, :, None] * value[:, :, -1, None]
    torch.testing.assert_close(found, last, rtol=1e-12, atol=1e-12)
