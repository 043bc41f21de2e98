"""Infer from a checkpoint's tensors what its configuration leaves open, and refuse unsupported variants."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.families import family_named

_QK_NORMS = (".self_attn.q_norm.", ".self_attn.k_norm.")


def settle(
    config: LucidConfig, raw: dict[str, Any], names: Collection[str], where: str
) -> tuple[LucidConfig, tuple[str, ...]]:
    """Complete a configuration from the names of the checkpoint's tensors; return it and notes for the user."""
    notes: list[str] = []
    own = () if config.class_config else family_named(config.family).computed
    if raw.get("use_beta") and "use_beta" not in own:
        notes.append(
            "use_beta is true, and the checkpoint has no tensors of beta: the model is computed without it, as in the "
            "authors' published code."
        )
    if config.class_config or config.qk_norm != "none":  # the class or the family already determines the tensors
        return config, tuple(notes)
    norm, note = _qk_norm(config, raw, [name for name in names if any(part in name for part in _QK_NORMS)], where)
    return dataclasses.replace(config, qk_norm=norm), (*notes, *([note] if note else []))


def _qk_norm(config: LucidConfig, raw: dict[str, Any], norms: list[str], where: str) -> tuple[str, str]:
    """Decide whether queries and keys are normed; return ``qk_norm``, and a note for the user, which may be empty.

    The authors' code has the norms for ``attention_type: llama`` unless ``use_qknorm`` is false, and never for LUCID.
    """
    wanted = raw.get("use_qknorm")
    if norms and (config.is_lucid or raw.get("attention_type") is None or wanted is False):
        given = f"use_qknorm is {str(wanted).lower()}" if wanted is not None else "use_qknorm is not given"
        raise LucidError(
            f"{where} holds {listed(sorted(norms), 4)}, but attention_type is {raw.get('attention_type')!r} and "
            f"{given}: norms of queries and keys are not supported there, and whether they come before or after rotary "
            "embedding is not known. If this is the authors' standard baseline, set attention_type to llama and "
            "use_qknorm to true."
        )
    if config.is_lucid:
        return "none", "use_qknorm is true; LUCID attention has no such norms." if wanted else ""
    if wanted is None and raw.get("attention_type") is not None:
        if norms:
            return "after_rope", "The checkpoint has q_norm and k_norm: they are applied after rotary embedding."
        return "none", "The checkpoint has no q_norm and k_norm: standard attention is computed without them."
    return ("after_rope" if wanted else "none"), ""


def listed(names: list[str], limit: int = 20) -> str:
    """Join names with commas; after ``limit`` names, say how many more there are."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
