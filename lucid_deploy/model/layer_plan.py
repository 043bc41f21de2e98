"""Decide the kind of every layer: LUCID, standard attention, attention over a window, or a linear kind."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config_file import Names, Size, checked
from lucid_deploy.model.families.family import FULL, LINEAR, SLIDING, Family, listed_types

if TYPE_CHECKING:
    from lucid_deploy.model.config import LucidConfig

LUCID, STANDARD, WINDOW = "lucid", "standard", "window"
LARGEST_WINDOW = 2**20
_Indices = Annotated[list[Annotated[int, Meta(ge=0)]], Meta(description="a list of layers, counted from 0")]


class _Keys(msgspec.Struct, kw_only=True, frozen=True):
    sliding_window: Size | None = None
    layer_types: Names | None = None
    lucid_layers: _Indices | None = None


def with_layer_kinds(config: LucidConfig, given: dict[str, Any], family: Family, where: str) -> LucidConfig:
    """Add the kind of every layer to a configuration.

    ``layer_types`` names the layers that attend over a window. With ``attention_type: lucid`` the others are LUCID, or
    only those that ``lucid_layers`` lists.

    Args:
        config: The configuration from the other keys.
        given: The keys of ``config.json`` and the family's defaults.
        family: The model's.
        where: Name of the file, for messages.

    Raises:
        LucidError: Keys that do not fit the model, or each other.
    """
    keys = checked(given, _Keys, where)
    named = keys.layer_types is not None or keys.lucid_layers is not None
    if config.layer_kinds:
        if named:
            raise LucidError(f"{where}: layer_kinds and layer_types or lucid_layers exclude each other.")
        return dataclasses.replace(config, sliding_window=keys.sliding_window if WINDOW in config.layer_kinds else None)
    types = family.layer_types(checked(given, family.keys, where), config.num_hidden_layers)
    known = (FULL, SLIDING, LINEAR) if family.linear_kind else (FULL, SLIDING)
    window = keys.sliding_window if config.sliding_window is None else config.sliding_window
    listed = keys.layer_types if keys.layer_types is not None and "layer_types" not in family.computed else types
    listed = listed_types(listed, config.num_hidden_layers, window, where, known)
    if listed != types and not config.is_lucid:
        raise LucidError(_ignored_layer_types(listed, types, family, where))
    types = listed  # with LUCID, layer_types counts even where the family's code ignores it
    if config.is_lucid and SLIDING in types:
        _check_switch(given, family, where)
    full = _full_kinds(config, keys, types, where)
    others = {SLIDING: WINDOW, LINEAR: family.linear_kind}
    kinds = tuple(others.get(kind, full[index]) for index, kind in enumerate(types))
    window = window if WINDOW in kinds else None
    if set(types) == {FULL} and len(set(kinds)) == 1 and keys.lucid_layers is None:
        return config  # attention_type applies to all layers
    return dataclasses.replace(config, layer_kinds=kinds, sliding_window=window)


def _check_switch(given: dict[str, Any], family: Family, where: str) -> None:
    """Refuse window layers with ``use_sliding_window: false``, where the family does not define which counts."""
    if given.get("use_sliding_window") is False and "use_sliding_window" not in family.computed | family.ignored:
        raise LucidError(
            f"{where}: layer_types names {SLIDING}, and use_sliding_window is false. Remove use_sliding_window if the "
            f"model was trained with windows; if not, name those layers {FULL}."
        )


def _full_kinds(config: LucidConfig, keys: _Keys, types: list[str], where: str) -> list[str]:
    """Return the kind of each layer in case it attends to all tokens."""
    if not config.is_lucid:
        return [STANDARD] * len(types)
    if keys.lucid_layers is None:
        if FULL not in types:
            raise LucidError(
                f"{where}: attention_type is {config.attention_type}, and {_without_full(types)}, so that none is "
                "LUCID. Name layers full_attention in layer_types, or set sliding_window to null."
            )
        return [LUCID] * len(types)
    chosen = keys.lucid_layers
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
            f"{where}: lucid_layers names layer {other[0]}, which {what}; LUCID attention needs all "
            "tokens. Name it full_attention in layer_types, or take it out of lucid_layers."
        )
    return [LUCID if index in chosen else STANDARD for index in range(len(types))]


def _ignored_layer_types(listed: list[str], types: list[str], family: Family, where: str) -> str:
    """Return the error for a family whose own code ignores ``layer_types`` and makes other layers."""
    index = next(index for index, kind in enumerate(types) if listed[index] != kind)
    windowed = types[index] == SLIDING
    return (
        f"{where}: layer_types names layer {index} {listed[index]}, and the code of {family.model_type}, which ignores "
        f"layer_types, makes it {types[index]}. "
        + (
            "If the model was trained with windows, remove layer_types; if not, set sliding_window to null."
            if windowed
            else "Remove layer_types if the model was trained with that code."
        )
    )


def _without_full(types: list[str]) -> str:
    if set(types) == {SLIDING}:
        return "all layers attend over a window"
    return "no layer attends to all tokens"
