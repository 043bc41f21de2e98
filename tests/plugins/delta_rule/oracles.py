"""The delta rule as transformers publishes it for Qwen3-Next, in the order of our arguments."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers.models.qwen3_next import modeling_qwen3_next as qwen

from lucid_deploy.plugins.delta_rule.torch_operator import delta_rule
from tests.plugins.delta_rule.problems import Inputs, doubled
from tests.plugins.problems import relative

FACTOR = 3  # of these errors, both against float64
NUDGES = 4


def _theirs(function, given: Inputs, scale: float) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    """Call it with its layout: tokens before heads, queries divided by √D; it computes in float32."""
    query, key, value, log_decay, beta, state = given
    query = query * (scale * math.sqrt(key.shape[3]))
    turned = (each.transpose(1, 2) for each in (query, key, value, log_decay, beta))
    output, new_state = function(*turned, initial_state=state, output_final_state=True)
    return output.transpose(1, 2), new_state


def token_by_token(given: Inputs, scale: float) -> tuple[Tensor, Tensor]:
    """Return outputs and state of transformers' recurrence."""
    return _theirs(qwen.torch_recurrent_gated_delta_rule, given, scale)


def by_chunks(given: Inputs, scale: float) -> tuple[Tensor, Tensor]:
    """Return outputs and state of transformers' chunks of 64."""
    return _theirs(qwen.torch_chunk_gated_delta_rule, given, scale)


def errors_by_chunks(given: Inputs, scale: float) -> tuple[float, float]:
    """Return the relative errors of output and state of :func:`by_chunks`: the largest of five with perturbed keys.

    If one key is repeated, |k|² may be rounded alike for all pairs of tokens. Forward substitution then has a smaller
    error than with keys that differ by rounding; how much smaller depends on the processor.
    """
    generator, found = torch.Generator().manual_seed(0), []
    for size in (0.0, *[1e-6] * NUDGES):
        query, key, *rest = given
        nudged = (query, key * (1 + size * torch.randn(key.shape, generator=generator)), *rest)
        exact = delta_rule(*doubled(nudged), scale, "reference")
        found.append([relative(theirs, wanted) for theirs, wanted in zip(by_chunks(nudged, scale), exact, strict=True)])
    output, state = (max(errors) for errors in zip(*found, strict=True))
    return output, state


def finite(given: Inputs) -> Inputs:
    """Return inputs whose log α is not −∞, which transformers' chunks turn into NaN."""
    query, key, value, log_decay, beta, state = given
    return query, key, value, log_decay.clamp_min(-200), beta, state
