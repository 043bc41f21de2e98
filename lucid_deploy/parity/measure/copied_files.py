"""Are the tokenizer's files of an artifact still the checkpoint's? Otherwise the same text becomes other tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import CheckFailed
from lucid_deploy.model.tokenizer_files import is_tokenizer_file

_WRITTEN_BY = "transformers_version"  # says who wrote a file, and changes nothing


def check_copies(artifact: Artifact, checkpoint: Path) -> int:
    """Compare what export copied with what the checkpoint has; return how many files there are in both.

    JSON is compared by what it says, other files byte by byte. A file that only one of them has is not compared:
    ``tokenizer.json`` may be made from ``tokenizer.model``, and a checkpoint may have come without its tokenizer.

    Args:
        artifact: What was exported.
        checkpoint: The folder from which.

    Raises:
        CheckFailed: Files differ; all of them are named.
    """
    names = [name for name in artifact.manifest.files if is_tokenizer_file(name) and (checkpoint / name).is_file()]
    other = [name for name in names if _content(artifact.path(name)) != _content(checkpoint / name)]
    if other:
        raise CheckFailed(
            f"{artifact.directory}: {', '.join(other)} {'is' if len(other) == 1 else 'are'} not what the checkpoint "
            f"{checkpoint} has: changed after the export, here or there. Export it again, or name the "
            "checkpoint that it came from with --checkpoint."
        )
    return len(names)


def _content(path: Path) -> Any:
    content = path.read_bytes()
    if path.suffix != ".json":
        return content
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        return content
    return {key: value for key, value in data.items() if key != _WRITTEN_BY} if isinstance(data, dict) else data
