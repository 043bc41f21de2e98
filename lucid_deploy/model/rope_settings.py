"""The settings of rotary embeddings, and both ways in which ``config.json`` spells them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from msgspec import UNSET

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config_file import ConfigFile, RopeBlock, checked, given_or
from lucid_deploy.model.config_keys import ROPE_KEYS, ROPE_REASONS

ROPE_TYPES = tuple(ROPE_KEYS)


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are changed for longer contexts, in transformers' terms.

    Attributes:
        rope_type: ``default`` (unchanged), ``linear`` (all divided by ``factor``), ``llama3`` or ``yarn`` (low ones
            divided, high ones kept, a ramp between), ``dynamic`` (unchanged up to ``max_position_embeddings``; beyond,
            all would change with the length of the text, so sessions do not allow it).
        factor: The divisor; without effect for ``dynamic``.
        low_freq_factor: ``llama3`` only: wavelengths above original context / this are divided.
        high_freq_factor: ``llama3`` only: wavelengths below original context / this are kept.
        original_max_position_embeddings: ``llama3`` and ``yarn``: the context length before scaling, in tokens.
        attention_factor: ``yarn`` only: factor of cosines and sines.
        beta_fast: ``yarn`` only: frequencies that turn more often over the original context are kept.
        beta_slow: ``yarn`` only: frequencies that turn less often over it are divided.
        truncate: ``yarn`` only: whether the ramp begins and ends at whole indices of frequencies.
    """

    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True)
class Rope:
    """The rotary settings of a layer: the base of its frequencies, and their scaling."""

    theta: float
    scaling: RopeScaling


def parse_rope(file: ConfigFile, where: str) -> tuple[float, RopeScaling]:
    """Read both spellings: ``rope_theta`` + ``rope_scaling`` (transformers 4), ``rope_parameters`` (transformers 5).

    Returns:
        The base of the frequencies, and their scaling.

    Raises:
        LucidError: Another scaling, or one whose settings are missing or contradict each other.
    """
    block = checked(file.rope_scaling or file.rope_parameters, RopeBlock, where)
    theta = file.rope_theta if block.rope_theta is UNSET else block.rope_theta
    kind = given_or(block.rope_type, given_or(block.type, "default"))
    if kind not in ROPE_TYPES:
        raise LucidError(
            f"{where}: rope_scaling {kind!r} is not supported; supported are {', '.join(ROPE_TYPES)}."
            f"{ROPE_REASONS.get(kind, '')}"
        )
    if kind == "yarn":
        if theta == 1:
            raise LucidError(f"{where}: rope_theta is 1: all frequencies are the same, so that yarn has no ramp.")
        return theta, _parse_yarn(block, where)
    required = (*ROPE_KEYS[kind], *(("original_max_position_embeddings",) if kind == "llama3" else ()))
    missing = [key for key in required if getattr(block, key) is UNSET]
    if missing:
        raise _missing(missing[0], kind, where)
    if kind != "llama3":
        return theta, RopeScaling(kind, *(getattr(block, key) for key in required))
    if block.low_freq_factor >= block.high_freq_factor:  # type: ignore[operator]
        raise LucidError(
            f"{where}: low_freq_factor ({block.low_freq_factor}) must be below high_freq_factor "
            f"({block.high_freq_factor})."
        )
    return theta, RopeScaling(kind, *(getattr(block, key) for key in required))


def _parse_yarn(block: RopeBlock, where: str) -> RopeScaling:
    factor, original = given_or(block.factor, None), given_or(block.original_max_position_embeddings, None)
    if factor is None or original is None:
        raise _missing("factor" if factor is None else "original_max_position_embeddings", "yarn", where)

    def magnitude(weight: float = 1.0) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    magnitudes = [magnitude(given_or(scale, 1.0)) for scale in (block.mscale, block.mscale_all_dim)]
    both = block.mscale is not UNSET and block.mscale_all_dim is not UNSET
    usual = magnitudes[0] / magnitudes[1] if both else magnitude()
    return RopeScaling(
        "yarn",
        factor,
        original_max_position_embeddings=original,
        attention_factor=given_or(block.attention_factor, usual),
        beta_fast=block.beta_fast,
        beta_slow=block.beta_slow,
        truncate=block.truncate,
    )


def _missing(key: str, kind: str, where: str) -> LucidError:
    meant = (
        "the context, in tokens, before it was extended" if key.startswith("original") else "what it was trained with"
    )
    return LucidError(f"{where}: {key} is missing, which rope_scaling {kind!r} needs. Add it: {meant}.")
