"""The names of tokenizer files and of ``generation_config.json`` in checkpoints and artifacts."""

from __future__ import annotations

import os
from pathlib import Path

from lucid_deploy.errors import LucidError

TEMPLATE, TEMPLATE_FOLDER = "chat_template.jinja", "additional_chat_templates"
_SUFFIX = ".jinja"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    TEMPLATE,
    "generation_config.json",
)


def is_tokenizer_file(name: str) -> bool:
    """Return whether a relative path with ``/`` is a tokenizer file or ``generation_config.json``."""
    folder, _, file = name.rpartition("/")
    return name in TOKENIZER_FILES or (folder == TEMPLATE_FOLDER and file.endswith(_SUFFIX))


def named_templates(directory: Path) -> dict[str, Path]:
    """Return the paths of the additional chat templates, by their file names without suffix."""
    found = sorted(path for path in (directory / TEMPLATE_FOLDER).glob(f"*{_SUFFIX}") if path.is_file())
    return {path.name.removesuffix(_SUFFIX): path for path in found}


def tokenizer_files(directory: Path) -> list[str]:
    """Return the files of a directory that :func:`is_tokenizer_file` accepts, as relative paths with ``/``."""
    named = [f"{TEMPLATE_FOLDER}/{path.name}" for path in named_templates(directory).values()]
    return [name for name in TOKENIZER_FILES if (directory / name).is_file()] + named


def check_regular(directory: Path) -> None:
    """Raise a LucidError for tokenizer paths of the wrong type, such as broken links, which would be left out."""
    folder = directory / TEMPLATE_FOLDER
    wrong = [path for name in TOKENIZER_FILES if os.path.lexists(path := directory / name) and not path.is_file()]
    wrong += [path for path in folder.glob(f"*{_SUFFIX}") if not path.is_file()]
    wrong += [folder] if os.path.lexists(folder) and not folder.is_dir() else []
    if wrong:
        raise LucidError(f"{wrong[0]} is not a {'folder' if wrong[0] == folder else 'file'}. Replace or remove it.")
