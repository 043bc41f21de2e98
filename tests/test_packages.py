"""A wheel has every package: the list in pyproject.toml is that of the folders."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "lucid_deploy": "lucid_deploy",
    "conformance": "lucid_deploy.conformance",
    "export": "lucid_deploy.export",
    "plugins": "lucid_deploy.plugins",
}


def test_every_folder_is_listed() -> None:
    found = {
        ".".join([package, *init.parent.relative_to(ROOT / folder).parts])
        for folder, package in FOLDERS.items()
        for init in (ROOT / folder).rglob("__init__.py")
    }
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(settings["packages"]) == found
    assert len(settings["packages"]) == len(found)
