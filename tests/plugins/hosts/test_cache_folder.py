"""Where built libraries and compiled kernels are kept."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.plugins.hosts.cache_folder import cache_folder
from lucid_deploy.plugins.hosts.onnxruntime.build import default_ort_library
from lucid_deploy.plugins.hosts.triton.compiled_kernel import default_cache


def test_it_is_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache" / "lucid-deploy"
    assert cache_folder() in default_cache().parents and cache_folder() in default_ort_library().parents
    assert not list(tmp_path.iterdir()), "asking for it makes nothing"


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_setting_it_lies_below_home(
    value: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty variable is the same as none, as the specification of these folders says."""
    monkeypatch.setenv("HOME", str(tmp_path))
    if value is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache_folder() == tmp_path / ".cache" / "lucid-deploy"


def test_a_user_without_a_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user is a number that its list of users lacks."""

    def unknown(_: int) -> None:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(LucidError, match=r"has no home folder.* Set HOME or XDG_CACHE_HOME"):
        cache_folder()
    monkeypatch.setenv("HOME", "/")  # what Docker sets
    assert cache_folder() == Path("/.cache/lucid-deploy")
