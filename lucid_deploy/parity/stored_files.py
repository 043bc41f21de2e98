"""Check an artifact's files: sha256, the tokenizer's files, and ``genai_config.json``, which only others read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lucid_deploy.artifact import Artifact, check_hashes
from lucid_deploy.errors import CheckFailed
from lucid_deploy.export import genai
from lucid_deploy.model.tokenizer_files import is_tokenizer_file
from lucid_deploy.parity.results import FAILED, PASSED, Check
from lucid_deploy.parity.targets import Progress
from lucid_deploy.version import __version__

_WRITTEN_BY = "transformers_version"  # says who wrote a file, and changes nothing
_ABSENT = object()  # in the place of a value that one of the two lacks


def check_files(artifact: Artifact, checkpoint: Path, progress: Progress | None = None) -> tuple[Check, bool]:
    """Check every file; return the result, and whether the graphs and weights are those that were exported."""

    def counted(done: int, total: int) -> None:
        if progress is not None:
            progress("Files: sha256", done, total)

    try:
        check_hashes(artifact, counted)
    except CheckFailed as failure:
        return Check("files", FAILED, str(failure)), False
    found = f"sha256 and size of {len(artifact.manifest.files)} files"
    try:  # nothing that is computed rests on these files
        if count := check_copies(artifact, checkpoint):
            found += f", of which {count} are equal to the checkpoint's"
        if check_genai_settings(artifact):
            found += "; genai_config.json is what export writes"
    except CheckFailed as failure:
        return Check("files", FAILED, str(failure)), True
    return Check("files", PASSED, found), True


def check_copies(artifact: Artifact, checkpoint: Path) -> int:
    """Compare the tokenizer's files with the checkpoint's; return how many there are in both.

    JSON is compared by content, other files byte by byte. A file that only one of them has is not compared:
    ``tokenizer.json`` may be made from ``tokenizer.model``, and a checkpoint may have come without its tokenizer.
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


def check_genai_settings(artifact: Artifact) -> bool:
    """Compare ``genai_config.json`` with what export would write for this artifact; return whether there is one.

    onnxruntime-genai runs the model by it. :func:`check_copies` compares ``generation_config.json``, which it rests on.
    """
    path = artifact.directory / genai.FILE
    if not path.is_file():
        return False
    if not genai.is_supported(artifact.manifest):
        raise CheckFailed(f"{path}: onnxruntime-genai cannot run this artifact, and export writes no such file for it.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise CheckFailed(f"{path} is no JSON. Export the artifact again.") from None
    expected = json.loads(json.dumps(genai.genai_config(artifact.manifest, artifact.directory)))
    other = list(_differences(found, expected, ""))
    if other:
        more = f", and {len(other) - 1} more" if len(other) > 1 else ""
        exporter = artifact.manifest.versions.get("lucid-deploy")
        by = "" if exporter == __version__ else f"lucid-deploy {exporter or 'of another version'} exported it. "
        raise CheckFailed(
            f"{path}: {other[0]}{more}; onnxruntime-genai would run the model by it. {by}Export the artifact again; "
            "settings of your own belong into the program, as its search options."
        )
    return True


def _differences(found: Any, expected: Any, where: str) -> Iterator[str]:
    """Yield each difference by its path, such as ``model.decoder.head_size is 32, not 64``."""
    pairs: Iterator[tuple[str, Any, Any]] | None = None
    if isinstance(found, dict) and isinstance(expected, dict):
        names = [*expected, *(name for name in found if name not in expected)]
        dot = f"{where}." if where else ""
        pairs = ((f"{dot}{name}", found.get(name, _ABSENT), expected.get(name, _ABSENT)) for name in names)
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        pairs = ((f"{where}[{i}]", *both) for i, both in enumerate(zip(found, expected, strict=True)))
    if pairs is not None:
        for name, left, right in pairs:
            yield from _differences(left, right, name)
    elif type(found) is not type(expected) or found != expected:
        yield f"{where or 'the whole file'} is {_shown(found)}, not {_shown(expected)}"


def _shown(value: Any) -> str:
    text = "absent" if value is _ABSENT else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
