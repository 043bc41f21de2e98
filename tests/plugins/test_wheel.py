"""A wheel contains all sources of the two libraries, the conformance kit and the server's pages."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE

pytest.importorskip("setuptools", minversion="77", reason='building a wheel needs: pip install -e ".[dev]"')

ROOT = Path(__file__).parents[2]
FOLDERS = ("lucid_deploy", "conformance", "export", "plugins")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that a wheel of this source tree was installed into."""
    folder = tmp_path_factory.mktemp("wheel")
    source, target = folder / "source", folder / "site"
    for name in FOLDERS:  # a copy, since building leaves files behind
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_wheel({str(folder)!r}))"
    built = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=PATIENCE)
    assert built.returncode == 0, built.stderr
    shutil.unpack_archive(folder / built.stdout.splitlines()[-1], target, "zip")
    return target


def test_a_wheel_has_all_plugin_sources(site: Path) -> None:
    plugins = site / "lucid_deploy" / "plugins"
    kinds = (".cpp", ".h", ".inl", ".json", ".md", ".py")
    files = {path.relative_to(ROOT / "plugins") for path in (ROOT / "plugins").rglob("*") if path.suffix in kinds}
    assert {path.relative_to(plugins) for path in plugins.rglob("*") if path.suffix in kinds} == files


def test_a_wheel_has_the_conformance_kit(site: Path) -> None:
    names = {path.name for path in (site / "lucid_deploy" / "conformance").iterdir()}
    assert {"run.py", "pinned.json"} <= names and "cases" not in names


def test_a_wheel_has_the_pages_of_the_server(site: Path) -> None:
    names = {path.name for path in (ROOT / "lucid_deploy/serving/web").iterdir()}
    assert names == {path.name for path in (site / "lucid_deploy/serving/web").iterdir()} and "app.js" in names
