"""Versions of OpenVINO that compute wrongly are refused, and the extra asks for none of them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.openvino.core import check_version


@pytest.mark.parametrize("version", ["2025.4.1-1-abc", "2026.3.1-22451-8a17657b995-releases/2026/3"])
def test_old_versions_are_refused(version: str) -> None:
    with pytest.raises(LucidError, match=r"does not run exported graphs rightly; the first that does is 2026\.4"):
        check_version(version)


def test_the_oldest_version_is_that_of_the_extra() -> None:
    check_version("2026.4.0-22959-99c81491cc3-releases/2026/4")
    root = Path(__file__).parents[3]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["openvino"] == ["openvino>=2026.4,<2027"]
