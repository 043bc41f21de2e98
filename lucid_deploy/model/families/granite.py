"""Granite: Llama with four multipliers."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec

from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.config_file import Positive
from lucid_deploy.model.families.family import Family


class _Keys(msgspec.Struct, kw_only=True, frozen=True):
    embedding_multiplier: Positive = 1.0
    residual_multiplier: Positive = 1.0
    attention_multiplier: Positive = 1.0
    logits_scaling: Positive = 1.0


class _Granite(Family):
    model_type = "granite"
    architectures = ("GraniteForCausalLM",)
    keys = _Keys
    about = "multipliers of embeddings, residuals and attention scores, and a divisor of the logits"

    def configure(self, config: LucidConfig, keys: Any, where: str) -> LucidConfig:
        return dataclasses.replace(
            config,
            embedding_multiplier=keys.embedding_multiplier,
            residual_multiplier=keys.residual_multiplier,
            attention_scale=keys.attention_multiplier,  # in the place of 1/√d
            logits_divisor=keys.logits_scaling,
        )


FAMILY = _Granite()
