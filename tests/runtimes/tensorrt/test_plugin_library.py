"""The plugin library is found where it was built, and refused where it is none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.tensorrt import plugin_library
from lucid_deploy.runtimes.tensorrt.plugin_library import default_library, find_or_build, register


@pytest.mark.parametrize("content", [None, b"not a library"])
def test_what_is_no_library_is_not_registered(content: bytes | None, tmp_path: Path) -> None:
    library = tmp_path / "plugin.so"
    if content is not None:
        library.write_bytes(content)
    with pytest.raises(LucidError, match=str(library)):
        register(library, SimpleNamespace())


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """An empty cache, and a stand-in for the compilers that notes what it is asked for."""
    calls: list[tuple[Any, ...]] = []

    def build(output: Path, archs: Any, dtypes: Any, progress: Any, head_dims: Any) -> list[Any]:
        calls.append((output.name, archs, dtypes, head_dims))
        output.parent.mkdir(exist_ok=True)
        output.touch()
        return []

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(plugin_library, "build_library", build)
    monkeypatch.setattr(plugin_library, "check_tools", lambda: None)
    return calls


def ask(*given: Any) -> tuple[Path, list[str]]:
    said: list[str] = []
    return find_or_build(*given, said.append, lambda *_: None), said


def test_what_is_missing_is_built_once_and_said(built: list[tuple[Any, ...]]) -> None:
    library, [line] = ask("float32", (36, 64), (86,), True)
    assert library.name == "liblucid_tensorrt-float32-d64-86.so" and str(library) in line
    assert built == [(library.name, (86,), ("float32",), (36, 64))]
    assert (
        "There is no plugin library, so one is built now: " in line and "for float32 and heads of width 36, 64" in line
    )
    assert ask("float32", (64,), (86,), True) == (library, []) and len(built) == 1
    assert ask("float16", (64,), (), True)[0].name == "liblucid_tensorrt-float16-d64-all.so", "other kernels"
    assert ask("float32", (64, 128), (75,), True)[0].name == "liblucid_tensorrt-float32-d64-d128-all.so"


def test_the_usual_library_comes_first_and_the_wheels_before_it(
    built: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = default_library()
    usual.parent.mkdir()
    usual.touch()
    assert ask("float32", (64,), (), True) == (usual, [])
    monkeypatch.setattr("lucid_deploy.plugins.hosts.libraries.PREBUILT", tmp_path / "wheel")
    (tmp_path / "wheel").mkdir()
    (tmp_path / "wheel" / usual.name).touch()
    assert ask("float32", (64,), (), True) == (tmp_path / "wheel" / usual.name, []) and built == []


def test_building_can_be_refused(built: list[tuple[Any, ...]]) -> None:
    with pytest.raises(LucidError, match=r"no plugin library .*Run: lucid-deploy plugin build, or leave out"):
        ask("float32", (64,), (), False)
    assert built == []
