"""Runtimes by name: built in, brought by packages, registered by programs; and what is refused before one is opened."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact
from lucid_deploy.cli import main
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes import (
    Capabilities,
    Runtime,
    RuntimeOptions,
    Session,
    find_runtime,
    open_session,
    register_runtime,
    runtime_names,
    unregister_runtime,
)
from lucid_deploy.runtimes.options import PROVIDERS
from lucid_deploy.runtimes.registry import BUILT_IN

Exported = Callable[..., tuple[Path, Artifact]]


class Recording(Runtime):
    """Notes what it is asked to open."""

    name = "recording"
    description = "Opens nothing."
    options = frozenset({"threads"})

    def __init__(self, can: Capabilities | None = None) -> None:
        self.can, self.opened = can or Capabilities(devices=("cpu", "npu")), []

    def capabilities(self, options: RuntimeOptions) -> Capabilities:
        return self.can

    def open(self, artifact: Artifact, options: RuntimeOptions) -> Session[Any]:
        self.opened.append(options)
        raise LucidError("That was all.")


@pytest.fixture
def registered() -> Iterator[Callable[..., Recording]]:
    def register(can: Capabilities | None = None) -> Recording:
        runtime = Recording(can)
        register_runtime(runtime)
        return runtime

    yield register
    if "recording" in runtime_names():
        unregister_runtime("recording")


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


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_provider_declares_what_it_can(provider: str) -> None:
    can = find_runtime("onnxruntime").capabilities(RuntimeOptions(provider=provider))
    on_cpu = provider == "cpu"
    assert (can.devices, "static" in can.caches, bool(can.cache_dtypes), can.rounds_activations) == (
        ("cpu",) if on_cpu else ("cuda",),
        *[on_cpu] * 3,
    )
    assert can.reads_layers == (provider in ("cpu", "cuda"))


def test_a_registered_runtime_is_opened_with_its_options(registered: Any, exported: Exported) -> None:
    runtime, artifact = registered(), exported()[1]
    with pytest.raises(LucidError, match="That was all"):
        open_session(artifact, RuntimeOptions("recording", "npu:3"), threads=2)
    assert runtime.opened == [RuntimeOptions("recording", "npu:3", threads=2)]
    unregister_runtime("recording")
    with pytest.raises(
        LucidError, match="'recording' is not known; known are auto, torch, onnxruntime, openvino, tensorrt"
    ):
        open_session(artifact, "recording")
    with pytest.raises(LucidError, match="No runtime recording was registered"):
        unregister_runtime("recording")


@pytest.mark.parametrize("name", ["auto", *BUILT_IN, "recording"])
def test_names_are_taken_once(name: str, registered: Any) -> None:
    registered()
    runtime = Recording()
    runtime.name = name
    with pytest.raises(LucidError, match=f"There is a runtime {name} already"):
        register_runtime(runtime)


@pytest.mark.parametrize(
    ("can", "options", "message"),
    [
        ({}, {"provider": "cuda"}, "--provider is for onnxruntime; runtime recording has none"),
        ({}, {"kernels": "functions"}, "--kernels is for onnxruntime; runtime recording has none"),
        ({}, {"device": "cuda"}, r"runs on cpu, not on 'cuda'\. For it there is --runtime torch or tensorrt, or"),
        ({"devices": ("cpu", "npu")}, {"device": "npu:x"}, r"runs on cpu or npu, not on 'npu:x'\.$"),
        ({}, {"device": "cpu:1"}, "not on 'cpu:1'"),
        ({"dtypes": ("float16",)}, {}, "runs models in float16, and .* has float32. Export with --dtype float16"),
        ({"caches": ("static",)}, {}, "runs caches that are static, and .* has growing. Export with --cache static"),
        (
            {"packages": ("no_such_package",), "install": "a[b]"},
            {},
            r'no_such_package is needed .* pip install "a\[b\]"',
        ),
    ],
)
def test_what_it_cannot_do_is_refused_before_it_is_opened(
    can: dict[str, Any], options: dict[str, Any], message: str, registered: Any, exported: Exported
) -> None:
    runtime = registered(Capabilities(**can))
    with pytest.raises(LucidError, match=message):
        open_session(exported()[1], "recording", **options)
    assert runtime.opened == []


def test_a_cache_type_is_refused_unless_declared(registered: Any, exported: Exported) -> None:
    runtime, artifact = registered(), exported(cache_dtype="int8")[1]
    with pytest.raises(LucidError, match=r"keeps the cache in the model's type, and that of .* is int8"):
        open_session(artifact, "recording")
    runtime.can = Capabilities(cache_dtypes=("int8",))
    with pytest.raises(LucidError, match="That was all"):
        open_session(artifact, "recording")


def test_sorts_of_cached_tensors_are_refused_unless_declared(registered: Any, exported: Exported) -> None:
    registered(Capabilities(cache_sorts=("state",)))
    with pytest.raises(LucidError, match=r"of the sort state; key of layer 0 \(\w+\) in .* is of the sort rows"):
        open_session(exported()[1], "recording")


def test_a_runtime_without_a_cpu_takes_the_default_as_its_own(registered: Any, exported: Exported) -> None:
    runtime = registered(Capabilities(devices=("npu",)))
    with pytest.raises(LucidError, match="That was all"):
        open_session(exported()[1], "recording")
    assert runtime.opened[0].device == "cpu"


@pytest.mark.parametrize(
    "options", [{"threads": 0}, {"threads": 1025}, {"provider": "rocm"}, {"kernels": "fast"}], ids=str
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(LucidError, match=r"must be 1 to 1024|not known; known are"):
        RuntimeOptions(**options)


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
        ("other", "brings:Found", "is no runtime of the name other"),
    ],
)
def test_a_broken_package_is_named(name: str, value: str, message: str, package: Any) -> None:
    package(name, value, FOUND)
    assert name in runtime_names()  # nothing is loaded to list it
    with pytest.raises(LucidError, match=message):
        find_runtime(name)


def test_two_packages_with_one_name(package: Any) -> None:
    package("found", "brings:RUNTIME", FOUND)
    package("found", "too:RUNTIME", FOUND, package="too")
    with pytest.raises(LucidError, match=r"Several packages bring a runtime found: .*too \(too:RUNTIME\)"):
        find_runtime("found")


def test_no_package_replaces_a_built_in_runtime(package: Any) -> None:
    package("torch", "brings:RUNTIME", FOUND)
    assert find_runtime("torch").description.startswith("The PyTorch model")
