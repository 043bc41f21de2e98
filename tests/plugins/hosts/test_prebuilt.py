"""A library of the wheel is taken before one of the user's, and said to be the wheel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from lucid_deploy.plugins.hosts import prebuilt as module
from lucid_deploy.plugins.hosts.onnxruntime.build import LIBRARY_NAME, default_ort_library, user_ort_library
from lucid_deploy.plugins.hosts.prebuilt import origin, prebuilt


def test_a_checkout_has_none() -> None:
    assert prebuilt(LIBRARY_NAME) is None and default_ort_library() == user_ort_library()
    assert origin(user_ort_library()) == "built here"


def test_the_wheels_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    assert default_ort_library() == user_ort_library(), "another library may be in the folder, this one is not"
    (tmp_path / LIBRARY_NAME).touch()
    assert default_ort_library() == tmp_path / LIBRARY_NAME != user_ort_library()
    assert origin(default_ort_library()) == "from the wheel"
