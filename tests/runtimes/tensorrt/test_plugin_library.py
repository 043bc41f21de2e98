"""The plugin library is found where it was built, and refused where it is none."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from lucid_deploy.cli import main
from lucid_deploy.errors import LucidError
from lucid_deploy.plugins.hosts.triton import aot
from lucid_deploy.runtimes.tensorrt import plugin_library
from lucid_deploy.runtimes.tensorrt.plugin_library import default_library, find_or_build, register


def test_it_lies_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_library().parent == tmp_path / "lucid-deploy" and default_library().suffix == ".so"
    assert not default_library().parent.exists(), "nothing is made to say where it would be"


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


def test_what_is_said_counts_the_kernels_of_the_width(built: list[tuple[Any, ...]]) -> None:
    every, one = (int(ask("float32", widths, (90,), True)[1][0].split()[10]) for widths in ((32, 64, 128, 256), (64,)))
    assert 0 < one < every / 3


def test_what_is_missing_shows_before_anything_is_promised(
    built: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise LucidError("no headers")

    monkeypatch.setattr(plugin_library, "check_tools", missing)
    said: list[str] = []
    with pytest.raises(LucidError, match="no headers"):
        find_or_build("float32", (64,), (), True, said.append, lambda *_: None)
    assert said == [] and built == []


def test_commands_have_the_option_that_is_named(built: list[tuple[Any, ...]]) -> None:
    """``build`` and ``package`` say it, and both must take it."""
    named = set(re.findall(r"--[a-z-]+", ask("float32", (64,), (86,), True)[1][0]))
    assert named
    for name in ("build", "package"):
        command = main.get_command(click.Context(main), name)
        assert command is not None
        assert named <= {option for parameter in command.params for option in parameter.opts}


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


def test_where_nothing_can_be_written_nothing_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It took minutes, as in a container whose home is read-only, and was for nothing."""

    def compile_kernels(*_: Any, **__: Any) -> None:
        pytest.fail("it compiles")

    monkeypatch.setattr(aot, "compile_kernels", compile_kernels)
    monkeypatch.setattr(plugin_library, "check_tools", lambda: None)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        plugin_library.build_library(tmp_path / "file" / "plugin.so")
