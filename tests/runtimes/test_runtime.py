"""What a runtime declares, and what it refuses unless it declares more."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes import Capabilities, RuntimeOptions, open_session, register_runtime
from lucid_deploy.runtimes.registry import unregister_runtime
from lucid_deploy.runtimes.runtime import is_installed
from tests.runtimes.recording import Recording

Exported = Callable[..., tuple[Path, Artifact]]


def test_what_is_not_declared_is_not_promised() -> None:
    least = Capabilities()
    assert (least.dtypes, least.devices, least.caches, least.cache_sorts, least.cache_dtypes) == (
        ("float32",),
        ("cpu",),
        ("growing",),
        ("rows",),
        (),
    )
    assert not (least.reads_layers or least.rounds_activations or least.builds_engines)


def test_a_lone_text_is_no_list() -> None:
    """In ``"bfloat16"`` one would find ``"float16"``."""
    for wrong in ({"dtypes": "bfloat16"}, {"packages": ("onnx", 1)}, {"caches": None}):
        with pytest.raises(LucidError, match=f"{next(iter(wrong))} of a runtime's Capabilities must be a list of text"):
            Capabilities(**wrong)


def test_a_module_of_a_package_that_is_not_there_is_not_installed() -> None:
    assert not is_installed("no_such_package.part") and not is_installed("no_such_package")
    assert is_installed("importlib.util")


class WithoutSession(Recording):
    """Forgets to return what it opened."""

    def open(self, artifact: Artifact, options: RuntimeOptions) -> Any:
        return None


def test_what_is_declared_and_opened_is_what_it_must_be(exported: Exported, registered: Any) -> None:
    _, artifact = exported()
    registered({"dtypes": ("float32",)})
    with pytest.raises(LucidError, match=r"declares no Capabilities, but \{'dtypes'.* Mend its capabilities\(\)"):
        open_session(artifact, "recording")
    unregister_runtime("recording")
    register_runtime(WithoutSession())  # which is forgotten as those of the fixture are
    with pytest.raises(LucidError, match=r"opened no Session, but None. Mend its open\(\)"):
        open_session(artifact, "recording")


def test_layers_are_refused_unless_the_method_is_replaced(exported: Exported) -> None:
    _, artifact = exported()
    session: Any = open_session(artifact, "torch")
    with pytest.raises(LucidError, match="Runtime recording cannot run a layer by itself"):
        Recording(Capabilities(reads_layers=True)).open_layers(session, artifact)


def test_a_package_that_is_not_installed_is_named_with_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "colorsys", None)  # as a package that was blocked
    Recording(Capabilities(packages=("click", "json"))).check_installed(RuntimeOptions())
    for package in ("no_such_package", "colorsys"):
        with pytest.raises(LucidError, match=f'{package} is needed to run .* pip install "extra'):
            Recording(Capabilities(packages=("click", package), install="extra")).check_installed(RuntimeOptions())


def test_nothing_is_imported_to_see_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "explosive.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert is_installed("explosive") and not is_installed("no_such_package")
    assert "explosive" not in sys.modules
