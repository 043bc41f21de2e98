"""No command writes onto what it reads: its own input files, or anything inside its artifact or checkpoint.

A file that is written at the end of long work is looked at before it: whether it can be.

An output is compared by inode, so that other names of a file, links of both kinds, are found too.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lucid_deploy.errors import LucidError

# Parameters of commands, by their names: what is written; models, into whose directories nothing is written; and
# other files that are read. A test holds that every parameter with a path is here or among the rest.
OUTPUTS = {
    "json_target": "--json",
    "output": "--output",
    "page": "--report",
    "plot_directory": "--plot",
    "history": "--history",
    "output_path": "--output-path",
}
SINGLE_FILES = ("--json", "--report")  # written at the end, so looked at before
FOLDERS = ("--plot", "--output-path")  # filled at the end or all along
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
REST = (
    "include_path",
    "data",
    "hub_cache",
    "plugin",
    "directories",
    "cases",
)  # folders to search, a library, what clean tidies
RECORD = ".run.json"  # beside the answers of a batch


def check_outputs(given: Mapping[str, Any], config: str | None = None) -> None:
    """Refuse outputs that would replace or change what the command reads, or each other.

    Args:
        given: The command's parameters, by their names.
        config: The file of options that it was given.

    Raises:
        LucidError: There is such an output, or a file that cannot be written.
    """
    outputs = [(OUTPUTS[name], Path(given[name])) for name in OUTPUTS if _names_a_file(given.get(name))]
    if isinstance(given.get("batch"), str) and outputs and given.get("output"):
        outputs.append(("--output", Path(f"{given['output']}{RECORD}")))
    models = [path for path in _paths(given, MODELS) if path.is_dir()]
    models += [source for path in models if (source := _source(path)) is not None]
    known: dict[tuple[int, int], Path] = {}
    for path in (*_paths({**given, "config": config}, READ), *(file for model in models for file in _inside(model))):
        if (inode := _inode(path)) is not None:
            known[inode] = path
    places: dict[Path, str] = {}
    for option, path in outputs:
        place = _resolved(option, path)
        for model in models:
            if model.resolve() in (place, *place.parents):
                how = "would replace" if model.resolve() == place else "lies inside"
                raise LucidError(f"{option} {path} {how} {model}, which is read. Choose another output.")
        if (inode := _inode(path)) in known and inode is not None:
            raise LucidError(f"{option} {path} would overwrite {known[inode]}, which is read. Choose another output.")
        if place in places and not _is_special(place):
            raise LucidError(f"{option} {path} is what {places[place]} writes too. Choose another output.")
        places[place] = option
    for option, path in outputs:
        if option in SINGLE_FILES and not places.keys() & set(path.resolve().parents):  # which the command makes
            _check_writable(option, path)
        elif option in FOLDERS:
            _check_folder(option, path)


def _resolved(option: str, path: Path) -> Path:
    try:
        path.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise LucidError(f"{option} {path} cannot be written: symbolic links lead back to it.") from error
    return path.resolve()


def _check_folder(option: str, path: Path) -> None:
    """Refuse a folder that could not be made, before the work and not after it.

    Raises:
        LucidError: A file has its name, or that of a folder it is to lie in, or the latter cannot be written.
    """
    there = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        raise LucidError(f"{option} {path} cannot be written: {there} is no folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise LucidError(f"{option} {path} cannot be written: nothing may be written into {there}.")


def _check_writable(option: str, path: Path) -> None:
    """Refuse a file that could not be written, before the work and not after it.

    Raises:
        LucidError: It is a folder, or its folder is missing or cannot be written.
    """
    place = path.resolve()
    if _is_special(place):  # a device or a pipe
        return
    folder = place.parent if path.is_symlink() else path.parent  # what a link points to is written
    why = None
    if place.is_dir():
        why = "it is a folder"
    elif not place.parent.is_dir():
        why = f"there is no folder {folder}"
    elif not os.access(place.parent, os.W_OK | os.X_OK):
        why = f"nothing may be written into {folder}"
    if why is not None:
        raise LucidError(f"{option} {path} cannot be written: {why}.")


def _names_a_file(value: Any) -> bool:
    return value is not None and str(value) != "-"


def _paths(given: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[Path]:
    for name in names:
        value = given.get(name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, str | Path) and str(item) != "-":
                yield Path(item)


def _source(artifact: Path) -> Path | None:
    """Return the checkpoint that an artifact names; None without one. What is wrong with a manifest is said later."""
    try:
        source = Path(json.loads((artifact / "lucid.json").read_text(encoding="utf-8"))["source"])
        return source if source.is_absolute() and source.is_dir() else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _inside(directory: Path) -> Iterator[Path]:
    try:
        yield from directory.rglob("*")
    except OSError:
        return


def _inode(path: Path) -> tuple[int, int] | None:
    """Return what a name leads to, if that is a file: pipes and devices hold nothing that could be lost."""
    try:
        facts = path.stat()
    except (OSError, ValueError):
        return None
    return (facts.st_dev, facts.st_ino) if stat.S_ISREG(facts.st_mode) else None


def _is_special(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()
