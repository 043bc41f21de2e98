"""What the adapter for lm_eval is made of: options by name, and a name for lm_eval's records of requests."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any
from uuid import uuid4

from lucid_deploy.argument_types import annotations_of, check_arguments
from lucid_deploy.errors import LucidError
from lucid_deploy.model.tokenizer_files import tokenizer_files
from lucid_deploy.runtimes.options import RuntimeOptions


def known_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return fields of :class:`~lucid_deploy.runtimes.options.RuntimeOptions`, as lm_eval's ``model_args`` give them.

    Raises:
        LucidError: One is of no such name or type.
    """
    known = annotations_of(RuntimeOptions)
    if unknown := sorted(set(options) - known.keys()):
        raise LucidError(f"LucidLM takes no {', '.join(unknown)}; of a runtime it takes {', '.join(sorted(known))}.")
    return check_arguments(options, known)


def record_name(directory: Path | None) -> str:
    """Return a name that tells a model's chats from those that other tokenizers and chat templates make.

    Args:
        directory: Where these lie. None: nobody knows, and no other call returns the same name.
    """
    if directory is None:
        return f"lucid-{uuid4().hex}"
    digest = hashlib.sha256()
    for name in tokenizer_files(directory):
        digest.update(f"{name}\0{hashlib.sha256((directory / name).read_bytes()).hexdigest()}\0".encode())
    return f"lucid-{digest.hexdigest()[:32]}"
