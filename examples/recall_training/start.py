"""The parameters that training starts from: arranged so that lookups are quick to learn, or random."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from lucid_deploy.model.attention.delta_net import DeltaNet
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.config_parsing import parse_config
from lucid_deploy.model.lucid import LucidForCausalLM
from lucid_deploy.model.rope import inverse_frequencies
from recall_training.words import SPECIAL

LOOK_BACK = 5.0  # how sharply the first layer's heads look back at the start
SIGNS = 3  # words after the special tokens that all entries share: signs and the verb


def new_model(raw: dict[str, Any], plain: bool = False) -> LucidForCausalLM:
    """Return a model to train.

    Args:
        raw: Its ``config.json``.
        plain: Whether parameters start random; else arranged.
    """
    model = LucidForCausalLM(parse_config(raw, "config.json"), implementation="reference")
    for layer in model.layers():
        if isinstance(layer.mixer, DeltaNet):  # its reference takes a step for every token
            layer.mixer.implementation = "blocked"
    if plain:
        start_random(model, raw["initializer_range"])
    else:
        initialize(model)
    return model


@torch.no_grad()
def initialize(model: LucidForCausalLM) -> None:
    """Draw the parameters, arranged so that lookups are quick to learn.

    The head starts as a copy of the embedding and attention heads write back what they read, since the task is to copy
    words. The first layer's heads look 1, 2, 3 and 4 tokens back; later layers attend to tokens with similar content.
    The heads of a layer of the delta rule hold 0, 1, 2 and 3 tokens back, by their convolutions.
    """
    config, embedding = model.config, model.model.embed_tokens.weight
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    common = F.normalize(torch.randn(config.hidden_size), dim=0)  # what all words share: look-back heads attend by it
    words = F.normalize(embedding - (embedding @ common)[:, None] * common, dim=1)
    embedding.copy_(words + 0.8 * common)
    model.lm_head.weight.copy_(words / 2)
    dull = words[: len(SPECIAL) + SIGNS]
    empty = torch.linalg.qr(torch.cat([common[None], dull]).T)[0]  # (C, ·), the directions that say nothing
    for i, layer in enumerate(model.layers()):
        if isinstance(layer.mixer, DeltaNet):
            _hold_back(layer.mixer)
            continue
        attention = layer.mixer
        value = 0.35 * _orthogonal_rows(attention.v_proj.weight)
        attention.v_proj.weight.copy_(value if i else value - value @ empty @ empty.T)
        attention.o_proj.weight.copy_(_per_query_head(value, config).T)
        if i:
            key = 1.1 * _orthogonal_rows(attention.k_proj.weight)
            key[_fast_rows(config)] *= 0.1  # content has to match at any distance
            key -= key @ empty @ empty.T
            attention.k_proj.weight.copy_(key)
            attention.q_proj.weight.copy_(_per_query_head(key, config))
    if not isinstance(model.layers()[0].mixer, DeltaNet):
        _look_back(model, common)


@torch.no_grad()
def start_random(model: LucidForCausalLM, width: float) -> None:
    """Draw every matrix from a normal distribution of that width, as Llama's training does."""
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=width)


def _hold_back(mixer: DeltaNet) -> None:
    """Let head h of a layer of the delta rule write the value of the token h back, and read what it wrote last.

    Queries are keys, so that a token reads what was written under words like it.
    """
    mixer.q_proj.weight.copy_(mixer.k_proj.weight)
    for convolution in (mixer.q_conv1d, mixer.k_conv1d, mixer.v_conv1d):
        convolution.weight.zero_()
        convolution.weight[:, 0, -1] = 1
    heads = mixer.v_conv1d.weight.view(mixer.settings.value_heads, -1, mixer.settings.kernel)  # (H, E, K)
    heads.zero_()
    for h in range(heads.shape[0]):
        heads[h, :, -1 - h % heads.shape[2]] = 1


def _look_back(model: LucidForCausalLM, common: torch.Tensor) -> None:
    """Let head h of the first layer attend h + 1 tokens back.

    Keys are one fixed vector along ``common``; the query of head h is that vector rotated back by h + 1 positions, in
    the faster half of the rotary frequencies, which tell neighbours apart.
    """
    config, attention = model.config, model.model.layers[0].self_attn
    frequencies, half = inverse_frequencies(config.rope(0), config.head_dim), config.head_dim // 2
    fast = (torch.arange(half) < half // 2) * LOOK_BACK / math.sqrt(config.hidden_size)  # (D/2,)
    keys = torch.cat([fast, torch.zeros(half)]).repeat(config.num_key_value_heads)  # (KV·D,)
    angles = frequencies * torch.arange(1, config.num_attention_heads + 1)[:, None]  # (H, D/2)
    queries = torch.cat([fast * angles.cos(), -fast * angles.sin()], dim=1).flatten()  # (H·D,)
    attention.k_proj.weight.copy_(torch.outer(keys, common))
    attention.q_proj.weight.mul_(0.2).add_(torch.outer(queries, common))


def _orthogonal_rows(weight: torch.Tensor) -> torch.Tensor:
    """Return a random matrix of the shape of ``weight`` whose rows are orthonormal."""
    return torch.nn.init.orthogonal_(torch.empty_like(weight))


def _per_query_head(rows: torch.Tensor, config: LucidConfig) -> torch.Tensor:
    """Repeat the rows of each key/value head for its query heads: ``(KV·D, C)`` to ``(H·D, C)``."""
    heads = rows.unflatten(0, (-1, config.head_dim))
    return heads.repeat_interleave(config.num_attention_heads // config.num_key_value_heads, dim=0).flatten(0, 1)


def _fast_rows(config: LucidConfig) -> torch.Tensor:
    """Return which rows of the key projection rotate with the faster half of the frequencies, boolean ``(KV·D,)``."""
    half = config.head_dim // 2
    return (torch.arange(half) < half // 2).repeat(2 * config.num_key_value_heads)
