"""What ``tokenizer_config.json`` says about tokens, in the form that ``export`` writes.

In that form ``tokenizer.json`` has all tokens, and ``tokenizer_config.json`` names some by their texts. A checkpoint's
files may say the same in many ways; :mod:`lucid_deploy.export.companions` reads them with transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lucid_deploy.errors import LucidError, reading

CONFIG = "tokenizer_config.json"
OTHER_FILES = ("special_tokens_map.json", "added_tokens.json")  # files of checkpoints that also describe tokens
EXTRA = "extra_special_tokens"  # an object of tokens whose names do not end with _token
DECODER = "added_tokens_decoder"


def token_names(directory: Path) -> dict[str, str]:
    """Return the texts of the tokens that have names, by name, such as ``bos_token``.

    Raises:
        LucidError: A file is unreadable, or describes tokens as only checkpoints and older artifacts do.
    """
    settings = read_tokenizer_file(directory / CONFIG)
    extra = settings.get(EXTRA, {})
    named = {name: value for name, value in settings.items() if name.endswith("_token") and not isinstance(value, bool)}
    named |= extra if isinstance(extra, dict) else {EXTRA: extra}
    older = [name for name in OTHER_FILES if (directory / name).exists()]
    older += [name for name, value in named.items() if not isinstance(value, str | None)]
    older += [DECODER] if DECODER in settings else []
    if older:
        raise LucidError(
            f"The tokenizer in {directory} has tokens in {older[0]}, which only export reads. Export the model again."
        )
    return {name: text for name, text in named.items() if text is not None}


def read_tokenizer_file(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one if there is no such file."""
    if not path.is_file():
        return {}
    try:
        with reading(path):
            found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise LucidError(f"{path} is not a readable tokenizer configuration: {error}.") from error
    if not isinstance(found, dict):
        raise LucidError(f"{path} is not a readable tokenizer configuration: it must be an object.")
    return found
