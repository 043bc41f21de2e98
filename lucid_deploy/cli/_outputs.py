"""Keep a command from overwriting what it reads: its input files, or anything inside its artifact or checkpoint.

If a file is written only at the end of long work, we check before the work begins that it can be written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lucid_deploy.errors import LucidError

# Parameters that name what a command writes. An existing path in any other parameter counts as an input.
OUTPUTS = {
    "json_target": "--json",
    "output": "--output",
    "page": "--report",
    "output_path": "--output-path",
    "write": "--write",
}
FILES = ("--json", "--report")  # for these and FOLDERS we check at the start that they can be written
FOLDERS = ("--output-path",)
RECORD = ".run.json"  # added to the name of a batch's answers


def check_outputs(given: Mapping[str, Any]) -> None:
    """Refuse a command's outputs that would replace or change its inputs or each other.

    Those in FILES and FOLDERS are also refused if they cannot be written.
    """
    outputs = [(OUTPUTS[name], Path(given[name])) for name in OUTPUTS if str(given.get(name) or "-") != "-"]
    if given.get("batch") and given.get("output"):
        outputs.append(("--output", Path(f"{given['output']}{RECORD}")))
    read = list(_paths(given))
    models = [path for path in read if any((path / name).is_file() for name in ("lucid.json", "config.json"))]
    models += [source for path in models if (source := _checkpoint_of(path)) is not None]
    inputs = {_real(path): path for path in read}
    written: dict[Path, str] = {}
    for option, path in outputs:
        place = _real(path)
        for model in models:
            if _real(model) in (place, *place.parents):
                how = "would replace" if _real(model) == place else "lies inside"
                raise LucidError(f"{option} {path} {how} {model}, which is read. Choose another output.")
        if place in inputs:
            raise LucidError(f"{option} {path} would overwrite {inputs[place]}, which is read. Choose another output.")
        if place in written and not _is_device(place):
            raise LucidError(f"{option} {path} is what {written[place]} writes too. Choose another output.")
        written[place] = option
    for option, path in outputs:
        if option in FILES + FOLDERS and not written.keys() & set(_real(path).parents):  # the command makes that parent
            _check_writable(option, path)


def _check_writable(option: str, path: Path) -> None:
    place = _real(path)
    folder = place.parent
    if option in FOLDERS:
        folder = next(each for each in (place, *place.parents) if each.exists())
    reason = None
    if option in FILES and place.is_dir():
        reason = "it is a folder"
    elif not folder.is_dir():
        reason = f"{folder} is not a folder" if folder.exists() else f"there is no folder {path.parent}"
    elif not _is_device(place) and not os.access(folder, os.W_OK | os.X_OK):
        reason = f"the folder {folder} is read-only"
    if reason is not None:
        raise LucidError(f"{option} {path} cannot be written: {reason}.")


def _paths(given: Mapping[str, Any]) -> Iterator[Path]:
    """Yield existing files and folders that a command's parameters name, but not its outputs."""
    for name, value in given.items():
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, str | Path) and name not in OUTPUTS:
                with suppress(OSError, ValueError):  # a text that cannot be a file's name
                    if Path(item).exists():
                        yield Path(item)


def _checkpoint_of(artifact: Path) -> Path | None:
    """Return the checkpoint that an artifact was exported from, if it is here. A damaged manifest is reported later."""
    manifest = artifact / "lucid.json"  # not by open_artifact: it loads NumPy, too early to limit its threads
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        source = Path(json.loads(manifest.read_text(encoding="utf-8"))["source"]) if manifest.is_file() else Path()
        return source if source.is_absolute() and source.is_dir() else None
    return None


def _real(path: Path) -> Path:
    """Return a path with links followed; a link that leads to itself stays, and writing to it fails later."""
    return Path(os.path.realpath(path))


def _is_device(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()
