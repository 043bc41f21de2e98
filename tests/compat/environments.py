"""Environments with one version of a runtime each, for Python and Node; made once, below ``build/compat``."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HOME = Path(__file__).resolve().parents[2] / "build" / "compat"
CHOICES = ("numpy>=1.26,<3",)


@contextmanager
def _still_to_make(folder: Path) -> Iterator[bool]:
    """Yield whether an environment must still be made, then mark it as made; other workers wait meanwhile."""
    HOME.mkdir(parents=True, exist_ok=True)
    done = folder / ".done"
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not done.is_file()
        done.touch()


def python_with(*packages: str) -> Path:
    """Return the interpreter of an environment that has these packages, named as pip takes them, and numpy.

    Raises:
        subprocess.CalledProcessError: uv cannot install them.
    """
    directory = HOME / "_".join(package.replace("==", "-") for package in packages)
    python = directory / "bin" / "python"
    with _still_to_make(directory) as is_missing:
        if is_missing:
            venv.create(directory, clear=True)
            _pip_install("--python", directory, *packages, *CHOICES)
    return python


def packages_beside(*packages: str) -> Path:
    """Return a folder with these packages alone, named as pip takes them, for this interpreter's import path.

    Raises:
        subprocess.CalledProcessError: uv cannot install them.
    """
    name = "_".join(package.replace("==", "-") for package in packages)
    if len(name) > 100:  # a file system bounds names
        name = f"beside-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    folder = HOME / name
    with _still_to_make(folder) as is_missing:
        if is_missing:
            _pip_install("--python", sys.executable, "--no-deps", "--target", folder, *packages)
    return folder


def folder_with(name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder of this name that ``make`` has filled, now or in an earlier run."""
    folder = HOME / name
    with _still_to_make(folder) as is_missing:
        if is_missing:
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
    return folder


def node_with(package: str) -> Path:
    """Return a folder in which Node finds a package, named as npm takes it.

    Raises:
        subprocess.CalledProcessError: npm cannot install it.
    """
    folder = HOME / package.replace("@", "-")
    with _still_to_make(folder) as is_missing:
        if is_missing:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "package.json").write_text("{}")
            _npm_install(folder, package)
    return folder


def node_packages(manifest: Path) -> Path:
    """Return a folder with the packages that a ``package.json`` names, as ``npm install`` makes it.

    Raises:
        subprocess.CalledProcessError: npm cannot install them.
    """
    folder = HOME / f"npm-{hashlib.sha256(manifest.read_bytes()).hexdigest()[:12]}"
    with _still_to_make(folder) as is_missing:
        if is_missing:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(manifest, folder)
            _npm_install(folder)
    return folder


def _pip_install(*options: str | Path) -> None:
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", *options]
    subprocess.run(command, check=True, stdout=sys.stderr)


def _npm_install(folder: Path, *packages: str) -> None:
    # Without scripts: that of onnxruntime-node downloads libraries for GPUs.
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", *packages]
    subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)
