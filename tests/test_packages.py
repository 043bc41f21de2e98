"""A wheel has every package: the list in pyproject.toml is that of the folders."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "lucid_deploy": "lucid_deploy",
    "conformance": "lucid_deploy.conformance",
    "export": "lucid_deploy.export",
    "plugins": "lucid_deploy.plugins",
}
ONLY_LINUX = ("triton", "kernel-lens", "cuda-bindings", "nvidia-cuda-runtime", "nvidia-cuda-crt", "onnxruntime-gpu")


def test_every_folder_is_listed() -> None:
    found = {
        ".".join([package, *init.parent.relative_to(ROOT / folder).parts])
        for folder, package in FOLDERS.items()
        for init in (ROOT / folder).rglob("__init__.py")
    }
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(settings["packages"]) == found
    assert len(settings["packages"]) == len(found)


def test_extras_resolve_on_windows_and_macos() -> None:
    """Packages without wheels for Windows and macOS, or that need such a package, are for Linux only."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for each in (Requirement(text) for listed in extras.values() for text in listed):
        if each.name in ONLY_LINUX:
            for system in ("win32", "darwin"):
                assert each.marker is not None and not each.marker.evaluate({"sys_platform": system}), each
