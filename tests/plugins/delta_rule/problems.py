"""Inputs on which a wrong delta rule shows: similar and repeated keys, all ranges of β and α, an initial state."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.plugins.problems import keys

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
# Ranges of β and of log α, from which each token draws its own.
BETAS = {"small": (0.0, 0.01), "open": (0.0, 1.0), "one": (0.99, 1.0), "two": (1.99, 2.0)}
# With reset, log α is also −∞ at every fifth token.
DECAYS = {"none": (0.0, 0.0), "slow": (-1e-3, 0.0), "fast": (-3.0, 0.0), "gone": (-200.0, -50.0), "reset": (-0.2, 0.0)}


def inputs(
    tokens: int,
    correlation: float = 0.9,
    beta: str = "open",
    decay: str = "slow",
    shape: tuple[int, int] = (2, 2),
    widths: tuple[int, int] = (16, 24),
    seed: int = 0,
) -> Inputs:
    """Return query, key, value, log α, β and state in float64.

    Args:
        tokens: N.
        correlation: Of any two keys; 1 is one key repeated.
        beta: One of BETAS.
        decay: One of DECAYS.
        shape: Batch and heads.
        widths: Of keys and of values.
        seed: Of the generator.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(*shape, tokens, generator=generator, dtype=torch.float64)

    key = torch.nn.functional.normalize(keys(correlation, *shape, tokens, widths[0], seed=seed), dim=-1)
    query = torch.nn.functional.normalize(key + 0.5 * normal(*shape, tokens, widths[0]), dim=-1)
    log_decay = between(*DECAYS[decay])
    if decay == "reset":
        log_decay[..., ::5] = -math.inf
    value, state = normal(*shape, tokens, widths[1]), normal(*shape, *widths)
    return query, key, value, log_decay, between(*BETAS[beta]), state


def in_type(given: Inputs, dtype: torch.dtype) -> Inputs:
    """Return inputs as a model of that type has them: log α and the state in float32."""
    query, key, value, log_decay, beta, state = given
    return query.to(dtype), key.to(dtype), value.to(dtype), log_decay.float(), beta.to(dtype), state.float()


def doubled(given: Inputs) -> Inputs:
    """Return the same numbers in float64."""
    query, key, value, log_decay, beta, state = (each.double() for each in given)
    return query, key, value, log_decay, beta, state
