"""Check the sha256 of all files of an artifact, and compare the tokenizer's files with the checkpoint's."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from lucid_deploy.artifact import Artifact, check_hashes
from lucid_deploy.errors import CheckFailed
from lucid_deploy.export.companions import copy_tokenizer
from lucid_deploy.model.tokenizer_files import is_tokenizer_file
from lucid_deploy.parity.progress import Progress
from lucid_deploy.parity.results import FAILED, PASSED, Check

_WRITTEN_BY = "transformers_version"  # the version that wrote a file has no effect, so it is not compared


def check_files(artifact: Artifact, checkpoint: Path, progress: Progress | None = None) -> tuple[Check, bool]:
    """Check every file; return the result, and whether all sizes and hashes match the manifest."""
    try:
        check_hashes(artifact, progress and partial(progress, "Files: sha256"))
    except CheckFailed as failure:
        return Check("files", FAILED, str(failure)), False
    found = f"sha256 and size of {len(artifact.manifest.files)} files"
    try:  # a tokenizer that differs does not stop the other checks, which do not use it
        if count := check_copies(artifact, checkpoint):
            found += f", of which {count} are equal to the checkpoint's"
    except CheckFailed as failure:
        return Check("files", FAILED, str(failure)), True
    return Check("files", PASSED, found), True


def check_copies(artifact: Artifact, checkpoint: Path) -> int:
    """Compare the tokenizer's files with those that an export writes for the checkpoint; return how many.

    JSON is compared by content, other files byte by byte. A file that only one side has is not compared: the
    checkpoint may lack its tokenizer. Raises CheckFailed if a file differs.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy_tokenizer(checkpoint, again := Path(folder))
        names = [name for name in artifact.manifest.files if is_tokenizer_file(name) and (again / name).is_file()]
        other = [name for name in names if _content(artifact.path(name)) != _content(again / name)]
    if other:
        raise CheckFailed(
            f"{artifact.directory}: {', '.join(other)} {'is' if len(other) == 1 else 'are'} not what the checkpoint "
            f"{checkpoint} has: the artifact or the checkpoint was changed after the export. Export it again, or "
            "name the checkpoint that it was exported from with --checkpoint."
        )
    return len(names)


def _content(path: Path) -> Any:
    content = path.read_bytes()
    if path.name == "tokenizer.json":  # normalise it: versions of the tokenizers library write different defaults
        from tokenizers import Tokenizer

        try:
            content = Tokenizer.from_buffer(content).to_str().encode()
        except Exception:  # noqa: BLE001 (tokenizers raises plain exceptions)
            return content
    if path.suffix != ".json":
        return content
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        return content
    return {key: value for key, value in data.items() if key != _WRITTEN_BY} if isinstance(data, dict) else data
