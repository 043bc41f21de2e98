"""Runtimes by name, and what they refuse before opening; only a runtime's own folder checks for that runtime."""

from __future__ import annotations

import ast
import shutil
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.cli import main
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.runtimes import Capabilities, RuntimeOptions, open_session
from lucid_deploy.runtimes.registry import BUILT_IN, find_runtime, runtime_names
from lucid_deploy.runtimes.torch.session import TorchSession

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


def test_built_in_runtimes_are_listed_and_describe_themselves() -> None:
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


def test_an_installed_package_adds_a_runtime(package: Any) -> None:
    package("found", "brings:RUNTIME", FOUND)
    assert runtime_names() == ("auto", *BUILT_IN, "found")
    assert find_runtime("found").description == "Opens nothing."
    for command in ("run", "verify", "serve", "eval", "bench"):
        shown = CliRunner().invoke(main, [command, "--help"]).stdout
        assert "[auto|torch|onnxruntime|openvino|tensorrt|found]" in "".join(shown.split())
    wrong = CliRunner().invoke(main, ["run", "x", "--runtime", "lost"])
    assert wrong.exit_code == 2 and "'lost' is not one of" in wrong.stderr and "'found'" in wrong.stderr


def test_a_package_that_cannot_be_imported_is_named_in_the_error(package: Any) -> None:
    package("gone", "no_such_module:RUNTIME", FOUND)
    assert "gone" in runtime_names()  # nothing is loaded to list it
    with pytest.raises(LucidError, match=r"Runtime gone of brings \(no_such_module:RUNTIME\) does not load: "):
        find_runtime("gone")


def test_a_registered_runtime_is_opened_with_its_options(registered: Any, exported: Exported) -> None:
    runtime, artifact = registered(), exported()[1]
    with pytest.raises(LucidError, match="That was all"):
        open_session(artifact, RuntimeOptions("recording", "npu:3"), threads=2)
    assert runtime.opened == [RuntimeOptions("recording", "npu:3", threads=2)]
    with pytest.raises(LucidError, match="'lost' is not known; known are torch, onnxruntime, openvino, tensorrt"):
        open_session(artifact, "lost")


@pytest.mark.parametrize(
    ("can", "options", "message"),
    [
        ({}, {"provider": "cuda"}, "--provider is for onnxruntime; runtime recording does not take it"),
        ({}, {"kernels": "functions"}, "--kernels is for onnxruntime; runtime recording does not take it"),
        ({}, {"device": "cuda"}, r"runs on cpu, not on 'cuda'\. Choose --runtime torch or tensorrt, or"),
        ({"devices": ("cpu", "npu")}, {"device": "npu:x"}, r"runs on cpu or npu, not on 'npu:x'\.$"),
        ({}, {"device": "cpu:1"}, "not on 'cpu:1'"),
        ({"dtypes": ("float16",)}, {}, "whose type is float16, and that of .* is float32. Export with --dtype float16"),
        ({"caches": ("static",)}, {}, "whose cache is static, and that of .* is growing. Export without --cache and"),
        (
            {"packages": ("no_such_package",), "install": "a[b]"},
            {},
            r'no_such_package is needed .* pip install "a\[b\]"',
        ),
    ],
)
def test_what_a_runtime_cannot_do_is_refused_before_it_opens_an_artifact(
    can: dict[str, Any], options: dict[str, Any], message: str, registered: Any, exported: Exported
) -> None:
    runtime = registered(Capabilities(**can))
    with pytest.raises(LucidError, match=message):
        open_session(exported()[1], "recording", **options)
    assert runtime.opened == []


def test_sorts_of_cached_tensors_are_refused_unless_declared(registered: Any, exported: Exported) -> None:
    registered(Capabilities(cache_sorts=("state",)))
    with pytest.raises(LucidError, match=r"of the sort state; key of layer 0 \(\w+\) in .* is of the sort rows"):
        open_session(exported()[1], "recording")


@pytest.mark.parametrize("when", ["before", "between", "half"])
def test_an_artifact_that_is_replaced_while_it_is_opened_is_refused(
    when: str, exported: Exported, artifact_copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Otherwise prefill would run one model and decode another, without an error."""
    artifact, newer = open_artifact(artifact_copy), exported(attention_type="llama")[1].directory

    def replaced() -> None:
        artifact_copy.rename(tmp_path / "older")
        shutil.copytree(newer, artifact_copy)

    open_session_there = TorchSession.__init__

    def opening(*arguments: Any, **named: Any) -> None:
        if when == "half":
            replaced()
            raise ValueError("cannot reshape array")
        open_session_there(*arguments, **named)
        if when == "between":
            replaced()

    monkeypatch.setattr(TorchSession, "__init__", opening)
    if when == "before":
        replaced()
    with pytest.raises(CheckFailed, match=r"changed while it was in use|was replaced while it was read"):
        open_session(artifact, "torch")


ROOT = Path(__file__).parents[2]


RUNTIMES = ROOT / "lucid_deploy" / "runtimes"


FOLDERS = ("lucid_deploy", "conformance", "export", "plugins")


FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


SHARED = [path for path in FILES if not any(RUNTIMES / name in path.parents for name in BUILT_IN)]


CHOICES = {"runtime", "provider"}  # attributes of sessions and options


DECLARING = {RUNTIMES / "options.py"}  # checks that names are known


def called(node: ast.expr) -> str:
    """Return the last part of a name: ``session.runtime`` is runtime."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def asks_which(tree: ast.AST) -> Iterator[int]:
    """Yield the numbers of lines that check for a certain runtime, provider or session class."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and not any(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
            if CHOICES & {called(side) for side in (node.left, *node.comparators)}:
                yield node.lineno
        elif isinstance(node, ast.Call) and called(node.func) in ("isinstance", "issubclass"):
            if any(called(each).endswith("Session") for each in ast.walk(node.args[1]) if isinstance(each, ast.expr)):
                yield node.lineno
        elif isinstance(node, ast.MatchClass) and called(node.cls).endswith("Session"):
            yield node.lineno


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_shared_code_checks_for_a_certain_runtime() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in SHARED
        if path not in DECLARING
        for line in asks_which(ast.parse(path.read_text()))
    ]
    assert found == []


def test_code_that_all_runtimes_share_imports_none_of_them() -> None:
    """The exception: ``inspect`` shows onnxruntime's memory and kernels."""
    found = {
        (path.name, module)
        for path in sorted(RUNTIMES.glob("*.py"))
        for module in imported(ast.parse(path.read_text()))
        if module.startswith(tuple(f"lucid_deploy.runtimes.{name}" for name in BUILT_IN))
    }
    assert found == {("inspection.py", "lucid_deploy.runtimes.onnxruntime.compatibility")}
