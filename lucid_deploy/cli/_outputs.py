"""No command writes onto what it reads: its own input files, or anything inside its artifact or checkpoint.

Outputs are compared by inode, so that links of both kinds to an input are found too. A file that is written at the end
of long work is checked before it: whether it can be written at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lucid_deploy.errors import LucidError

# Parameters of commands by their names: what is written; models, into whose folders nothing is written; files that are
# read. A test holds that every parameter with a path is in one of these or in OTHERS.
OUTPUTS = {
    "json_target": "--json",
    "output": "--output",
    "page": "--report",
    "plot_directory": "--plot",
    "history": "--history",
    "output_path": "--output-path",
    "write": "--write",
}
FILES = ("--json", "--report")
FOLDERS = ("--plot", "--output-path")
MODELS = ("artifact", "artifacts", "checkpoint", "against", "draft")
READ = (
    "batch",
    "prompt_file",
    "calibration",
    "text",
    "haystack",
    "golden",
    "config",
    "api_key_file",
    "metrics_key_file",
    "token_file",
    "json_schema",
    "grammar",
)
OTHERS = ("include_path", "data", "hub_cache", "plugin", "cases")  # searched folders, libraries
RECORD = ".run.json"  # beside the answers of a batch


def check_outputs(given: Mapping[str, Any], config: str | None = None) -> None:
    """Refuse outputs that would replace or change what the command reads, or each other.

    Args:
        given: The command's parameters, by their names.
        config: The file of options that it was given.

    Raises:
        LucidError: There is such an output, or one that cannot be written.
    """
    outputs = [(OUTPUTS[name], Path(given[name])) for name in OUTPUTS if str(given.get(name) or "-") != "-"]
    if given.get("batch") and given.get("output"):
        outputs.append(("--output", Path(f"{given['output']}{RECORD}")))
    models = [path for path in _paths(given, MODELS) if path.is_dir()]
    models += [source for path in models if (source := _checkpoint_of(path)) is not None]
    inputs = [*_paths({**given, "config": config}, READ), *(file for model in models for file in model.rglob("*"))]
    inodes = {inode: path for path in inputs if (inode := _inode(path)) is not None}
    written: dict[Path, str] = {}
    for option, path in outputs:
        try:
            place = path.resolve(strict=path.is_symlink())
        except (OSError, RuntimeError) as error:  # symbolic links that lead to themselves, or nowhere
            raise LucidError(f"{option} {path} cannot be written: it is a symbolic link that leads nowhere.") from error
        for model in models:
            if model.resolve() in (place, *place.parents):
                how = "would replace" if model.resolve() == place else "lies inside"
                raise LucidError(f"{option} {path} {how} {model}, which is read. Choose another output.")
        if (inode := _inode(path)) in inodes and inode is not None:
            raise LucidError(f"{option} {path} would overwrite {inodes[inode]}, which is read. Choose another output.")
        if place in written and not _is_device(place):
            raise LucidError(f"{option} {path} is what {written[place]} writes too. Choose another output.")
        written[place] = option
    for option, path in outputs:
        if option in FILES and not written.keys() & set(path.resolve().parents):  # a folder that the command makes
            _check_file(option, path)
        elif option in FOLDERS:
            _check_folder(option, path)


def _check_file(option: str, path: Path) -> None:
    place = path.resolve()
    if place.is_dir():
        raise LucidError(f"{option} {path} cannot be written: it is a folder.")
    if not place.parent.is_dir():
        raise LucidError(f"{option} {path} cannot be written: there is no folder {path.parent}.")
    if not _is_device(place) and not os.access(place.parent, os.W_OK | os.X_OK):
        raise LucidError(f"{option} {path} cannot be written: the folder {path.parent} is read-only.")


def _check_folder(option: str, path: Path) -> None:
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise LucidError(f"{option} {path} cannot be written: {existing} is not a folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise LucidError(f"{option} {path} cannot be written: the folder {existing} is read-only.")


def _paths(given: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[Path]:
    for name in names:
        value = given.get(name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, str | Path) and str(item) != "-":
                yield Path(item)


def _checkpoint_of(artifact: Path) -> Path | None:
    """Return the checkpoint that an artifact was exported from, if it is here. A damaged manifest is reported later."""
    manifest = artifact / "lucid.json"
    if not manifest.is_file():  # nor a pipe or a device, which reading could wait for
        return None
    try:
        source = Path(json.loads(manifest.read_text(encoding="utf-8"))["source"])
        return source if source.is_absolute() and source.is_dir() else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _inode(path: Path) -> tuple[int, int] | None:
    """Return what a name leads to, if that is a regular file: pipes and devices hold nothing that could be lost."""
    try:
        return (path.stat().st_dev, path.stat().st_ino) if path.is_file() else None
    except (OSError, ValueError):
        return None


def _is_device(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()
