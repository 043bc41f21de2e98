"""Runtimes by name: built in, brought by packages, registered by programs; and what is refused before one is opened."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact
from lucid_deploy.cli import main
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes import RuntimeOptions, find_runtime, register_runtime, runtime_names
from lucid_deploy.runtimes.registry import BUILT_IN
from tests.runtimes.recording import Recording

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that puts an installed package with an entry point on the path."""

    def install(name: str, value: str, code: str = "", package: str = "brings") -> None:
        (tmp_path / f"{package}.py").write_text(textwrap.dedent(code))
        info = tmp_path / f"{package}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[lucid_deploy.runtimes]\n{name} = {value}\n")

    monkeypatch.syspath_prepend(tmp_path)
    return install


def test_built_in_runtimes() -> None:
    assert runtime_names() == ("auto", *BUILT_IN)
    assert find_runtime("auto") is find_runtime("onnxruntime")
    for name in BUILT_IN:
        runtime = find_runtime(name)
        assert runtime.name == name and runtime.description.endswith(".")
        can = runtime.capabilities(RuntimeOptions())
        assert can.packages and can.install and can.dtypes and can.devices


FOUND = """
from lucid_deploy.runtimes import Capabilities, Runtime

class Found(Runtime):
    name, description = "found", "Opens nothing."
    def capabilities(self, options):
        return Capabilities()
    def open(self, artifact, options):
        raise NotImplementedError

RUNTIME = Found()
"""


def test_a_package_brings_a_runtime(package: Any) -> None:
    package("found", "brings:RUNTIME", FOUND)
    assert runtime_names() == ("auto", *BUILT_IN, "found")
    assert find_runtime("found").description == "Opens nothing."
    for command in ("run", "verify", "serve", "eval", "bench"):
        shown = CliRunner().invoke(main, [command, "--help"]).stdout
        assert "[auto|torch|onnxruntime|openvino|tensorrt|found]" in "".join(shown.split())
    wrong = CliRunner().invoke(main, ["run", "x", "--runtime", "lost"])
    assert wrong.exit_code == 2 and "'lost' is not one of" in wrong.stderr and "'found'" in wrong.stderr


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "gone",
            "no_such_module:RUNTIME",
            r"Runtime gone of brings \(no_such_module:RUNTIME\) does not load: No module",
        ),
        ("gone", "brings:OTHER", "does not load: .*OTHER"),
        ("other", "brings:RUNTIME", "is no runtime of the name other"),
        ("other", "brings:Found", r"is no runtime, but a class: name an object of it, as in Found\(\)"),
    ],
)
def test_a_broken_package_is_named(name: str, value: str, message: str, package: Any) -> None:
    package(name, value, FOUND)
    assert name in runtime_names()  # nothing is loaded to list it
    with pytest.raises(LucidError, match=message):
        find_runtime(name)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"name": "My Runtime"}, "must be lower-case letters, digits and dashes, not 'My Runtime'"),
        ({"name": None}, "must be lower-case letters, digits and dashes, not None"),
        ({"description": None}, "Runtime other has no description"),
        ({"options": frozenset({"thread"})}, "Runtime other heeds thread, which RuntimeOptions does not have"),
    ],
)
def test_what_a_runtime_says_of_itself_is_checked(attributes: dict[str, Any], message: str) -> None:
    runtime = Recording()
    for name, value in {"name": "other", **attributes}.items():
        setattr(runtime, name, value)
    with pytest.raises(LucidError, match=message):
        register_runtime(runtime)
    with pytest.raises(LucidError, match="an object of a subclass of Runtime, not the class Recording"):
        register_runtime(Recording)


def test_no_package_replaces_a_built_in_runtime(package: Any) -> None:
    package("torch", "brings:RUNTIME", FOUND)
    assert find_runtime("torch").description.startswith("The PyTorch model")
