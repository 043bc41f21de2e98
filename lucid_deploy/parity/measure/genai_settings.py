"""Is ``genai_config.json`` what export writes? onnxruntime-genai reads it, and no run of our own does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import CheckFailed
from lucid_deploy.export import genai
from lucid_deploy.version import __version__

_NOTHING = object()  # in the place of a value that one of the two lacks


def check_genai_settings(artifact: Artifact) -> bool:
    """Compare the file with what export would write for this artifact; return whether there is one.

    ``generation_config.json`` of the artifact is taken as it is: :func:`check_copies` holds it to the checkpoint's.

    Raises:
        CheckFailed: It says something else, or belongs to an artifact that onnxruntime-genai cannot run.
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
        raise CheckFailed(
            f"{path}: {other[0]}{more}; onnxruntime-genai would run the model by it. {_exported_by(artifact)}Export "
            "the artifact again; settings of your own belong into the program, as its search options."
        )
    return True


def _exported_by(artifact: Artifact) -> str:
    """Say that another version has written the artifact, if one has: the difference may be one of versions."""
    exporter = artifact.manifest.versions.get("lucid-deploy")
    if exporter == __version__:
        return ""
    return f"lucid-deploy {exporter or 'of another version'} exported it, and this is {__version__}. "


def _differences(found: Any, expected: Any, where: str) -> Iterator[str]:
    """Yield what differs, each by its path, such as ``model.decoder.head_size is 32, not 64``."""
    pairs: Iterator[tuple[str, Any, Any]] | None = None
    if isinstance(found, dict) and isinstance(expected, dict):
        names = [*expected, *(name for name in found if name not in expected)]
        dot = f"{where}." if where else ""
        pairs = ((f"{dot}{name}", found.get(name, _NOTHING), expected.get(name, _NOTHING)) for name in names)
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        pairs = ((f"{where}[{i}]", *both) for i, both in enumerate(zip(found, expected, strict=True)))
    if pairs is not None:
        for name, left, right in pairs:
            yield from _differences(left, right, name)
    elif type(found) is not type(expected) or found != expected:
        yield f"{where or 'all of it'} is {_shown(found)}, not {_shown(expected)}"


def _shown(value: Any) -> str:
    text = "absent" if value is _NOTHING else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
