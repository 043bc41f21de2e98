"""Chunks against the recurrence: similar and repeated keys, all ranges of β and α, edges of chunks, to 4096 tokens."""

from __future__ import annotations

import pytest
import torch

from lucid_deploy.plugins.delta_rule.torch_operator import delta_rule
from tests.plugins.delta_rule.oracles import FACTOR, errors_by_chunks, finite
from tests.plugins.delta_rule.problems import BETAS, DECAYS, doubled, in_type, inputs
from tests.plugins.problems import relative

EPS = torch.finfo(torch.float32).eps


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("tokens", "correlation"), [(63, 1.0), (129, 0.9)])
def test_chunks_match_the_recurrence(tokens: int, correlation: float, beta: str, decay: str) -> None:
    """In float64 the largest error was 4e-14, with β near 2 and one key repeated."""
    given = inputs(tokens, correlation, beta, decay)
    for ours, exact in zip(delta_rule(*given, 0.3), delta_rule(*given, 0.3, "reference"), strict=True):
        assert relative(ours, exact) < 1e-12


@pytest.mark.parametrize(
    ("tokens", "correlation", "beta", "decay"),
    [(65, 1.0, "two", "none"), (200, 0.9, "open", "reset"), (1000, 0.9, "open", "slow")],
)
def test_float32_is_as_exact_as_transformers_chunks(tokens: int, correlation: float, beta: str, decay: str) -> None:
    given = finite(in_type(inputs(tokens, correlation, beta, decay), torch.float32))
    exact = delta_rule(*doubled(given), 0.3, "reference")
    for ours, theirs, wanted in zip(delta_rule(*given, 0.3), errors_by_chunks(given, 0.3), exact, strict=True):
        assert relative(ours, wanted) <= FACTOR * max(theirs, EPS / 2)


@pytest.mark.parametrize("decay", ["reset"])
def test_many_chunks_do_not_drift(decay: str) -> None:
    """4096 tokens in float64, and cut in two at an odd place."""
    given = inputs(4096, 0.9, "open", decay, (1, 1), (8, 8))
    output, state = delta_rule(*given, 0.3)
    exact = delta_rule(*given, 0.3, "reference")
    assert relative(output, exact[0]) < 1e-12 and relative(state, exact[1]) < 1e-12
    first, second = (tuple(each[:, :, part] for each in given[:5]) for part in (slice(1001), slice(1001, None)))
    before, between = delta_rule(*first, given[5], 0.3)
    after, end = delta_rule(*second, between, 0.3)
    torch.testing.assert_close(torch.cat([before, after], dim=2), output, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(end, state, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    given = in_type(inputs(200, decay="fast"), dtype)
    output, state = delta_rule(*given, 0.3)
    exact = delta_rule(*doubled(given), 0.3, "reference")
    assert (output.dtype, state.dtype) == (dtype, torch.float32)
    once = delta_rule(*given, 0.3, "reference")[0]
    assert relative(output, exact[0]) < 1.1 * relative(once, exact[0])  # rounded once, as the reference's output is
    assert relative(state, exact[1]) < 16 * EPS
