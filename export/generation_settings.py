"""What ``generation_config.json`` asks for and no command of ours takes from there: the export says it.

transformers' ``generate`` takes these settings as defaults, and other servers do; our commands do what they are asked
for alone. Tokens that end a text are read from the file (:mod:`lucid_deploy.model.checkpoint`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lucid_deploy.model.config_file import read_object

# Settings that change which tokens transformers chooses, with the values that change nothing; null never does.
CHANGES: dict[str, tuple[Any, ...]] = {
    "do_sample": (False,),
    "repetition_penalty": (1,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "bad_words_ids": ([],),
    "force_words_ids": ([],),
    "constraints": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "sequence_bias": ({}, []),
    "exponential_decay_length_penalty": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "stop_strings": ([],),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "guidance_scale": (1,),
    "watermarking_config": (),
    "token_healing": (False,),
}
# These do only if do_sample is true.
SAMPLING: dict[str, tuple[Any, ...]] = {
    "temperature": (1,),
    "top_k": (0,),
    "top_p": (1,),
    "min_p": (0,),
    "top_h": (1,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
}
_TOP_K = "top_k 50 (transformers' default)"  # its only default that changes what is sampled


def settings_note(directory: Path) -> tuple[str, ...]:
    """Return a sentence about the settings of a checkpoint that are no defaults here; none if there are none."""
    path = directory / "generation_config.json"
    settings = read_object(path) if path.is_file() else {}
    known = {**CHANGES, **(SAMPLING if settings.get("do_sample") else {})}
    found = [name for name, neutral in known.items() if settings.get(name) not in (None, *neutral)]
    if not found:
        return ()
    asked = [f"{name} {_shown(settings[name])}".rstrip() for name in found]
    if settings.get("do_sample") and settings.get("top_k") is None:
        asked.append(_TOP_K)
    return (
        f"generation_config.json asks for {', '.join(asked)}: transformers takes that as defaults, and no command does "
        "here. Give run and chat options, and requests fields.",
    )


def _shown(value: Any) -> str:
    """Return a value if it is short."""
    return str(value).lower() if isinstance(value, bool | int | float) else ""
