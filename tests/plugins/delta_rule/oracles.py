"""The delta rule as transformers publishes it for Qwen3-Next, in the order of our arguments."""

from __future__ import annotations

import math

from torch import Tensor
from transformers.models.qwen3_next import modeling_qwen3_next as qwen

from tests.plugins.delta_rule.problems import Inputs


def _theirs(function, given: Inputs, scale: float) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    """Tokens come before heads, queries are always divided by √D, and the arithmetic is float32."""
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


def finite(given: Inputs) -> Inputs:
    """Return inputs whose log α is not −∞, which transformers' chunks turn into NaN."""
    query, key, value, log_decay, beta, state = given
    return query, key, value, log_decay.clamp_min(-200), beta, state
