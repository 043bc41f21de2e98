"""Load model classes whose code comes with the checkpoint, as ``auto_map`` in ``config.json`` says.

The code runs only if the user allows it and transformers has no class of its own for the ``model_type``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from lucid_deploy.errors import LucidError
from lucid_deploy.model.transformers_class.configuration import class_of

OPTION = "--trust-remote-code"
_NAMES = ("AutoConfig", "AutoModelForCausalLM")


def take_code(raw: dict[str, Any], directory: Path, trusted: bool) -> None:
    """Register a checkpoint's own classes with transformers, so that its Auto classes find them.

    ``trusted``: whether the user allows the code to run. Raises a LucidError if required code is not trusted or cannot
    be loaded, or if ``trusted`` is set but there is no code to run.
    """
    where, kind, named = directory / "config.json", raw.get("model_type"), raw.get("auto_map")
    named = named if isinstance(named, dict) else {}
    if isinstance(kind, str) and kind in CONFIG_MAPPING and class_of(kind):
        if trusted and CONFIG_MAPPING[kind].__module__.startswith("transformers."):
            raise LucidError(f"transformers has a class of its own for {kind}, which is used: leave out {OPTION}.")
        return
    if not all(isinstance(named.get(name), str) for name in _NAMES):
        if trusted:
            raise LucidError(f"{where} names no code of its own (auto_map: {', '.join(_NAMES)}): leave out {OPTION}.")
        return
    code = [named[name] for name in _NAMES]
    files = ", ".join(f"{each.rpartition('.')[0]}.py" for each in dict.fromkeys(code))
    if not trusted:
        raise LucidError(
            f"{where}: model_type {kind!r} is computed by code that came with the checkpoint ({files}). It would "
            f"run on this machine with your permissions: read it, and add {OPTION} if you trust it."
        )
    if any("--" in each for each in code):
        raise LucidError(f"{where}: the code is in another repository ({code[0]}). Copy it into {directory}.")
    try:
        config, model = (get_class_from_dynamic_module(each, str(directory), local_files_only=True) for each in code)
        AutoConfig.register(kind, config)
        AutoModelForCausalLM.register(config, model)
    except Exception as error:  # whatever the code does when it is imported
        reason = " ".join(str(error).split())[:200]
        raise LucidError(f"{where}: its code cannot be loaded: {type(error).__name__}: {reason}") from error
