"""Parse the ``config.json`` of a model family that this package implements."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from msgspec import UNSET

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import LUCID, STANDARD, WINDOW, LucidConfig, RopeScaling, check_shape
from lucid_deploy.model.config_file import (
    ConfigFile,
    LayerKeys,
    RopeBlock,
    checked,
    given_or,
    token_ids,
)
from lucid_deploy.model.config_keys import ROPE_KEYS, check_keys
from lucid_deploy.model.families import Family
from lucid_deploy.model.families.family import FULL, LINEAR, SLIDING

_SAME = {item.name for item in dataclasses.fields(LucidConfig)} & set(ConfigFile.__struct_fields__)
# Why other types of rotary scaling are refused.
_LONGROPE = " It switches its frequencies at some text length, but cached keys are already rotated."
_ROPE_REASONS = {"longrope": _LONGROPE, "su": _LONGROPE}
_ORIGINAL = "original_max_position_embeddings"


def parse_config(raw: dict[str, Any], where: str, assume_unused: Collection[str] = ()) -> LucidConfig:
    """Check the content of a checkpoint's ``config.json`` and convert it to a :class:`LucidConfig`.

    Settings that only the checkpoint's tensors show are added later, by :func:`lucid_deploy.model.variants.settle`.
    """
    family = check_keys(raw, where, assume_unused)
    raw = family.normalized(raw, where)
    file = checked(raw, ConfigFile, where)
    if file.which_rmsnorm != "exp_k_norm":
        raise LucidError(f"{where}: which_rmsnorm {file.which_rmsnorm!r} is not supported; only exp_k_norm is.")
    if file.hidden_act not in ("silu", "swish"):
        raise LucidError(f"{where}: hidden_act {file.hidden_act!r} is not supported; only silu is.")
    theta, scaling = _parse_rope(file, where)
    values = {
        **{name: getattr(file, name) for name in _SAME},
        "num_key_value_heads": given_or(file.num_key_value_heads, file.num_attention_heads),
        "head_dim": given_or(file.head_dim, file.hidden_size // file.num_attention_heads),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "bos_token_id": next(iter(token_ids(file.bos_token_id)), None),
        "eos_token_ids": token_ids(file.eos_token_id),
        "layer_kinds": tuple(file.layer_kinds),
        "attention_output_bias": file.attention_bias,
        "family": family.model_type,
    }
    config = family.configure(LucidConfig(**values), checked(raw, family.keys, where), where)
    config = _with_layer_kinds(config, raw, family, where)
    check_shape(config, where)
    return config


def _parse_rope(file: ConfigFile, where: str) -> tuple[float, RopeScaling]:
    """Read rotary settings as transformers 4 spells them (``rope_theta``, ``rope_scaling``) or 5 (``rope_parameters``).

    Returns:
        The base of the frequencies, and their scaling.
    """
    block = checked(file.rope_scaling or file.rope_parameters, RopeBlock, where)
    theta = given_or(block.rope_theta, file.rope_theta)
    kind = given_or(block.rope_type, given_or(block.type, "default"))
    if kind not in ROPE_KEYS:
        raise LucidError(
            f"{where}: rope_scaling {kind!r} is not supported; supported are {', '.join(ROPE_KEYS)}."
            f"{_ROPE_REASONS.get(kind, '')}"
        )
    needed = (*ROPE_KEYS[kind], _ORIGINAL) if kind == "llama3" else ROPE_KEYS[kind]
    for key in needed:
        if getattr(block, key) is UNSET:
            meant = "the value that the model was trained with"
            if key == _ORIGINAL:
                meant = "the context length, in tokens, before it was extended"
            raise LucidError(f"{where}: {key} is missing, which rope_scaling {kind!r} needs. Add it: {meant}.")
    read = {*needed} & {item.name for item in dataclasses.fields(RopeScaling)}
    scaling = RopeScaling(kind, **{key: value for key in read if (value := getattr(block, key)) is not UNSET})
    if kind == "llama3" and scaling.low_freq_factor >= scaling.high_freq_factor:
        raise LucidError(
            f"{where}: low_freq_factor ({scaling.low_freq_factor}) must be below high_freq_factor "
            f"({scaling.high_freq_factor})."
        )
    return theta, scaling


def _with_layer_kinds(config: LucidConfig, given: dict[str, Any], family: Family, where: str) -> LucidConfig:
    """Add the kind of every layer to a configuration.

    ``layer_types`` says which layers use linear or sliding-window attention. With ``attention_type: lucid``, the others
    are LUCID layers, or only those that ``lucid_layers`` lists.
    """
    keys = checked(given, LayerKeys, where)
    if config.layer_kinds:
        if keys.layer_types is not None or keys.lucid_layers is not None:
            raise LucidError(f"{where}: layer_kinds cannot be combined with layer_types or lucid_layers.")
        return dataclasses.replace(config, sliding_window=keys.sliding_window if WINDOW in config.layer_kinds else None)
    window = keys.sliding_window if config.sliding_window is None else config.sliding_window
    types = family.layer_types(checked(given, family.keys, where), config.num_hidden_layers)
    if keys.layer_types is not None and "layer_types" not in family.computed:
        types = keys.layer_types  # even if the published code ignores it; without LUCID it has only full_attention
    _check_types(types, config, window, family, where)
    if config.is_lucid and SLIDING in types and given.get("use_sliding_window") is False:
        raise LucidError(
            f"{where}: layer_types names {SLIDING}, and use_sliding_window is false. Remove use_sliding_window if the "
            f"model was trained with windows; if not, name those layers {FULL}."
        )
    full = _full_kinds(config, keys.lucid_layers, types, where)
    others = {SLIDING: WINDOW, LINEAR: family.linear_kind}
    kinds = tuple(others.get(kind, full[index]) for index, kind in enumerate(types))
    if set(types) == {FULL} and len(set(kinds)) == 1 and keys.lucid_layers is None:
        return config  # attention_type applies to all layers
    return dataclasses.replace(config, layer_kinds=kinds, sliding_window=window if WINDOW in kinds else None)


def _check_types(types: list[str], config: LucidConfig, window: int | None, family: Family, where: str) -> None:
    """Raise a LucidError for a ``layer_types`` of wrong length, unsupported types, or a window of unknown size."""
    known = (FULL, SLIDING, LINEAR) if family.linear_kind else (FULL, SLIDING)
    if len(types) != config.num_hidden_layers:
        raise LucidError(
            f"{where}: layer_types names {len(types)} layers, num_hidden_layers is {config.num_hidden_layers}."
        )
    other = sorted(set(types) - set(known))
    if other:
        raise LucidError(
            f"{where}: layer_types names {other[0]!r}, which is not supported; supported are {' and '.join(known)}."
        )
    if SLIDING in types and window is None:
        raise LucidError(f"{where}: layer_types names {SLIDING}, and sliding_window does not say over how many tokens.")


def _full_kinds(config: LucidConfig, chosen: list[int] | None, types: list[str], where: str) -> list[str]:
    """Return the kind that each layer has if it attends to all tokens; ``chosen`` is the value of ``lucid_layers``."""
    if not config.is_lucid:
        return [STANDARD] * len(types)
    if chosen is None:
        if FULL not in types:
            what = "no layer attends to all tokens"
            if set(types) == {SLIDING}:
                what = "all layers attend over a window"
            raise LucidError(
                f"{where}: attention_type is {config.attention_type}, and {what}, so that none is LUCID. Name layers "
                "full_attention in layer_types, or set sliding_window to null."
            )
        return [LUCID] * len(types)
    beyond = [index for index in chosen if index >= len(types)]
    if beyond or len(set(chosen)) < len(chosen) or not chosen:
        what = f"layer {beyond[0]}" if beyond else "a layer twice" if chosen else "no layer"
        raise LucidError(
            f"{where}: lucid_layers names {what}; it lists layers, counted from 0, of {len(types)} (num_hidden_layers)."
        )
    other = [index for index in chosen if types[index] != FULL]
    if other:
        what = "attends over a window" if types[other[0]] == SLIDING else "is one of linear attention"
        raise LucidError(
            f"{where}: lucid_layers names layer {other[0]}, which {what}; LUCID attention needs all tokens. Name it "
            "full_attention in layer_types, or take it out of lucid_layers."
        )
    return [LUCID if index in chosen else STANDARD for index in range(len(types))]
