"""Compare a ``config.json`` with the tables of keys: every key is known, or the file is refused by the key's name."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any

from lucid_deploy.errors import LucidError
from lucid_deploy.json_fields import clipped
from lucid_deploy.model.config_keys import (
    ATTENTION_TYPES,
    CHANGES,
    COMPUTED,
    KNOWN,
    LAYER_KEYS,
    LUCID_KEYS,
    LUCID_TYPES,
    ROPE_ALWAYS,
    ROPE_BLOCKS,
    ROPE_CHANGES,
    ROPE_KEYS,
    WITH_OTHERS,
)
from lucid_deploy.model.families import Family, families, family_named, family_of

_SIMILAR = 0.8  # of difflib's ratio: one or two letters of a key's name


def check_keys(raw: dict[str, Any], where: str, assume_unused: Collection[str] = ()) -> Family:
    """Refuse a configuration unless each of its keys is known, and is computed or does nothing; return its family.

    Args:
        raw: The content of ``config.json``.
        where: Name of the file, for messages.
        assume_unused: Unknown keys that the user says change nothing; those of a rope block as ``rope_scaling.key``.

    Raises:
        LucidError: Another kind of model, keys that change what is not computed, or unknown ones. One error names all.
    """
    family = _check_family(raw, where)
    _check_assumed(where, assume_unused, family)
    _check_lucid_keys(raw, where, family)
    raw = family.normalized(raw, where)
    refused = [*_refused(raw, family), *_refused_rope(raw)]
    if refused:
        raise LucidError(
            f"{where}: {' '.join(refused)} The answers would be wrong without it. Remove a key from the file only if "
            "the model was trained without what it asks for."
        )
    unknown = sorted(unknown_keys(raw) - set(assume_unused))
    if unknown:
        raise LucidError(_unknown_message(raw, where, unknown))
    return family


def unknown_keys(raw: dict[str, Any]) -> set[str]:
    """Return the keys that no table lists; those inside a rope block as ``rope_scaling.key``."""
    inside = {f"{name}.{key}" for name, block in _rope_blocks(raw).items() for key in block if key not in _ROPE_KNOWN}
    return {*(raw.keys() - _known(raw)), *inside}


def _known(raw: dict[str, Any]) -> frozenset[str]:
    """Return the keys that some table lists: those of all families, and those of the configuration's own."""
    family = family_of(raw)
    return KNOWN if family is None else KNOWN | family.computed | family.ignored | family.refused.keys()


def value_of(raw: dict[str, Any], key: str) -> Any:
    """Return the value of a key, or of ``block.key`` inside a rope block."""
    outer, _, inner = key.partition(".")
    return raw[outer][inner] if outer in ROPE_BLOCKS and inner else raw[key]


_ROPE_KNOWN = frozenset((*ROPE_ALWAYS, *ROPE_CHANGES, "partial_rotary_factor"))


def _rope_blocks(raw: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: raw[name] for name in ROPE_BLOCKS if isinstance(raw.get(name), dict) and raw[name]}


def _check_assumed(where: str, assume_unused: Collection[str], family: Family) -> None:
    changing = COMPUTED | CHANGES.keys() | WITH_OTHERS | family.computed
    for key in assume_unused:
        outer, _, inner = key.partition(".")
        if key in changing or (outer in ROPE_BLOCKS and inner in _ROPE_KNOWN):
            raise LucidError(
                f"{where}: {key} is known to change the numbers, so it cannot be assumed unused. If the model was "
                "trained without it, remove it from the file."
            )


def _check_family(raw: dict[str, Any], where: str) -> Family:
    kind, named = raw.get("model_type"), raw.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise LucidError(f"{where}: architectures must be a list of names, not {named!r}.")
    if kind is None and not named and raw.get("attention_type") is None:
        raise LucidError(
            f"{where}: model_type is missing, so whose code computes this model is not known; supported are "
            f'{", ".join(families())}. Add "model_type": "llama" if it is Llama, with LUCID\'s keys or without.'
        )
    family = family_of(raw)
    if family is None:
        of = f" ({', '.join(named)})" if named else ""
        also = "".join(f" {said}" for said in _refused(raw, family_named("llama")))
        raise LucidError(
            f"{where}: model_type {kind!r}{of} is not supported; supported are {', '.join(families())}. Its own code "
            f"may compute something else from the same tensors.{also} If it is Llama in all but name, set model_type "
            'to "llama" and architectures to ["LlamaForCausalLM"].'
        )
    of_all = [name for model_type in families() for name in family_named(model_type).architectures]
    allowed = of_all if kind is None else family.architectures
    if set(named) - set(allowed):
        of = f" with model_type {kind!r}" if kind else ""
        raise LucidError(
            f"{where}: architectures {named!r} is not supported{of}; supported is {' or '.join(allowed)}. Another "
            "class computes something else from the same tensors."
        )
    return family


def _check_lucid_keys(raw: dict[str, Any], where: str, family: Family) -> None:
    """Refuse another attention, and LUCID's keys without the one that says which it is, as the authors' code does."""
    attention = raw.get("attention_type")
    if attention is not None and attention not in ATTENTION_TYPES:
        raise LucidError(
            f"{where}: attention_type {attention!r} is not supported; supported are {', '.join(ATTENTION_TYPES)}."
        )
    found = [key for key in LUCID_KEYS if raw.get(key) is not None and key not in family.computed]
    if found and attention is None:
        near = difflib.get_close_matches("attention_type", raw.keys() - KNOWN, 1, _SIMILAR)
        hint = f" Is {near[0]} a misspelling of it?" if near else ""
        raise LucidError(
            f"{where}: attention_type is missing, beside {', '.join(found)} of LUCID's configuration.{hint} Set it to "
            "lucid, or to llama for standard attention."
        )


def _refused(raw: dict[str, Any], family: Family) -> list[str]:
    found = []
    own = {*family.computed, *family.ignored, *_layer_keys(raw)}
    for key, value in {**family.defaults, **raw}.items():
        if key in CHANGES and key not in own and not _does_nothing(raw, key, value):
            said = f"{key} is {_shown(value)}" if key in raw else f"{key} is missing, which means {value}"
            found.append(f"{said}. {CHANGES[key][0]}, which is not supported.")
    return found + [
        f"{key} is {_shown(raw[key])}. {said}, so it is not supported."
        for key, said in family.refused.items()
        if raw.get(key)
    ]


def _layer_keys(raw: dict[str, Any]) -> tuple[str, ...]:
    """Return the keys that say which layers are LUCID: with LUCID they are computed in every family."""
    if raw.get("attention_type") not in LUCID_TYPES:
        return ()
    return LAYER_KEYS if raw.get("layer_types") else ("lucid_layers",)


def _does_nothing(raw: dict[str, Any], key: str, value: Any) -> bool:
    unused = key == "sliding_window" and raw.get("use_sliding_window") is False
    return unused or CHANGES[key][1](value)


def _refused_rope(raw: dict[str, Any]) -> list[str]:
    found, blocks = [], _rope_blocks(raw)
    if len(blocks) == 2 and blocks["rope_scaling"] != blocks["rope_parameters"]:
        found.append(
            "rope_scaling and rope_parameters differ. It is unclear which of them counts, so this is not supported."
        )
    for name, block in blocks.items():
        kind = block.get("rope_type") or block.get("type") or "default"
        if block.get("type") not in (None, kind):
            found.append(f"{name} has rope_type {kind!r} and type {block['type']!r}, which is not supported.")
        if isinstance(kind, str) and kind in ROPE_KEYS:  # others are refused where the block is read
            found += [
                f"{name}.{key} is {_shown(value)}. rope_type {kind} has no such setting, so it is not supported."
                for key, value in block.items()
                if value is not None and key in ROPE_CHANGES and key not in ROPE_KEYS[kind]
            ]
        if kind == "yarn" and block.get("truncate", True) is None:
            found.append(
                f"{name}.truncate is null, which transformers takes for false in some families and for true, as where "
                "it is missing, in others. Say true or false."
            )
        does, harmless = CHANGES["partial_rotary_factor"]
        if not harmless(block.get("partial_rotary_factor")):
            found.append(
                f"{name}.partial_rotary_factor is {block['partial_rotary_factor']!r}. {does}, which is not supported."
            )
        original = raw.get("original_max_position_embeddings")  # transformers lets it win over the block's
        if original is not None and original != block.get("original_max_position_embeddings", original):
            found.append(
                f"original_max_position_embeddings is {original!r}, and another in {name}, which is not supported."
            )
    return found


def _unknown_message(raw: dict[str, Any], where: str, unknown: list[str]) -> str:
    named = [f"{clipped(key)} is {_shown(value_of(raw, key))}{_likely(key, _known(raw))}" for key in unknown]
    they = "This key is" if len(unknown) == 1 else "These keys are"
    way = " ".join(f"--assume-unused {clipped(key)}" for key in unknown)
    return (
        f"{where}: {'; '.join(named)}. {they} not known here, and if the model's own code computes something from it, "
        f"the answers would be wrong. Correct a misspelling; if that code leaves it unused, export with {way}"
    )


def _likely(key: str, known: frozenset[str]) -> str:
    """Name the key that an unknown one is probably meant to be."""
    outer, _, inner = key.partition(".")
    inside = outer in ROPE_BLOCKS and inner
    near = difflib.get_close_matches(inner if inside else key, _ROPE_KNOWN if inside else known, 1, _SIMILAR)
    return f" (is {near[0]} meant?)" if near else ""


def _shown(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"
