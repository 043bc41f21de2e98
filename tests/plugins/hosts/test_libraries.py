"""Where libraries are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from lucid_deploy.plugins.hosts import libraries
from lucid_deploy.plugins.hosts.libraries import cache_folder, origin, prebuilt
from lucid_deploy.plugins.hosts.onnxruntime.build import (
    LIBRARY_NAME,
    default_ort_library,
    user_ort_library,
)


def test_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache" / "lucid-deploy"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # the same as none
    assert cache_folder() == tmp_path / ".cache" / "lucid-deploy"
    assert not list(tmp_path.iterdir()), "the function must not create the folder"


def test_the_wheels_library_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prebuilt(LIBRARY_NAME) is None and default_ort_library() == user_ort_library(), "a checkout has none"
    assert origin(user_ort_library()) == "built here"
    monkeypatch.setattr(libraries, "PREBUILT", tmp_path)
    assert default_ort_library() == user_ort_library(), "another library may be in the folder, this one is not"
    (tmp_path / LIBRARY_NAME).touch()
    assert default_ort_library() == tmp_path / LIBRARY_NAME != user_ort_library()
    assert origin(default_ort_library()) == "from the wheel"
