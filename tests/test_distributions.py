"""The distributions of a few packages are those that Python's own look at all of them finds."""

from __future__ import annotations

import csv
import importlib.metadata
from pathlib import Path

import pytest

from lucid_deploy.distributions import distributions_of

PACKAGES = ("numpy", "torch", "onnxruntime", "onnx", "pytest", "lucid_deploy")


def test_they_are_what_python_finds() -> None:
    wanted = importlib.metadata.packages_distributions()
    assert distributions_of(*PACKAGES) == {package: list(dict.fromkeys(wanted[package])) for package in PACKAGES}


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"RECORD": "found_here/__init__.py,sha256=0,1\n"}, ["found-here"]),
        ({"RECORD": '"found_here/a,b/code.py",sha256=0,1\n'}, ["found-here"]),
        ({"RECORD": "found_here.py,sha256=0,1\n"}, ["found-here"]),
        ({"RECORD": "other/found_here/code.py,,\nfound_here_too/code.py,,\n"}, []),
        ({"top_level.txt": "another\nfound_here\n"}, ["found-here"]),
        ({"top_level.txt": "another\n", "RECORD": "found_here/__init__.py,,\n"}, []),
        ({}, []),
    ],
)
def test_what_a_distribution_declares_or_records_counts(
    files: dict[str, str], wanted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = tmp_path / "found_here-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: found-here\nVersion: 1.0\n")
    for name, text in files.items():
        (facts / name).write_text(text)
    for row in csv.reader(files.get("RECORD", "").splitlines()):  # Python 3.12 counts files that are there alone
        (tmp_path / row[0]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / row[0]).touch()
    monkeypatch.syspath_prepend(tmp_path)
    distributions_of.cache_clear()
    assert distributions_of("found_here") == {"found_here": wanted}
    assert importlib.metadata.packages_distributions().get("found_here", []) == wanted
    distributions_of.cache_clear()


def test_one_that_is_found_in_two_places_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an editable installation is, beside the folder of its facts in the checkout."""
    for place in (tmp_path / "site", tmp_path / "checkout"):
        facts = place / "found_here-1.0.dist-info"
        facts.mkdir(parents=True)
        (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: found-here\nVersion: 1.0\n")
        (facts / "top_level.txt").write_text("found_here\n")
        monkeypatch.syspath_prepend(place)
    distributions_of.cache_clear()
    assert distributions_of("found_here") == {"found_here": ["found-here"]}
    distributions_of.cache_clear()
