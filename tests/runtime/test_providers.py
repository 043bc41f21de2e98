"""onnxruntime's execution providers: what is asked for and what is refused.

No GPU is used: a stand-in for onnxruntime has the providers, records what it is told and computes on the CPU.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as real
import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact
from lucid_deploy.cli import main
from lucid_deploy.errors import LucidError
from lucid_deploy.runtime import open_session, providers
from lucid_deploy.runtime.providers import CPU, PROVIDERS, provider_options

Exported = Callable[..., tuple[Path, Artifact]]
NAMES = {
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "nv-tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
}


class Binding:
    """Copies inputs when they are bound, as a provider with memory of its own does."""

    def __init__(self, binding: Any) -> None:
        self.real = binding

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self.real.bind_ortvalue_input(name, real.OrtValue.ortvalue_from_numpy(value.numpy().copy()))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class FakeOrt(ModuleType):
    """The installed onnxruntime with GPU providers that compute on the CPU, and start unless ``starts`` is False."""

    def __init__(self, starts: bool = True) -> None:
        super().__init__("onnxruntime")
        self.__spec__ = ModuleSpec("onnxruntime", None)  # other packages ask for it when they look for onnxruntime
        self.asked: list[Any] = []
        self.options: list[Any] = []
        self.devices: list[Any] = []
        self.registered: list[tuple[str, str]] = []
        fake = self

        class Options(real.SessionOptions):
            def __init__(self) -> None:
                super().__init__()
                self.initializers: list[str] = []
                self.entries: list[str] = []
                self.chosen: list[str] = []

            def add_initializer(self, name: str, value: Any) -> None:
                self.initializers.append(name)
                super().add_initializer(name, value)

            def add_session_config_entry(self, key: str, value: str) -> None:
                self.entries.append(key)
                super().add_session_config_entry(key, value)

            def add_provider_for_devices(self, devices: Any, options: Any) -> None:
                self.chosen = [device.ep_name for device in devices]

        class Session:
            def __init__(self, path: str, options: Any, providers: Any, enable_fallback: int) -> None:
                assert enable_fallback == 0
                fake.asked.append(providers)
                fake.options.append(options)
                names = [item if isinstance(item, str) else item[0] for item in providers or options.chosen]
                self.names = [name for name in names if starts or name == CPU]
                self.real = real.InferenceSession(path, options, providers=[CPU])

            def get_providers(self) -> list[str]:
                return self.names

            def io_binding(self) -> Binding:
                return Binding(self.real.io_binding())

            def run_with_iobinding(self, binding: Binding) -> None:
                self.real.run_with_iobinding(binding.real)

            def __getattr__(self, name: str) -> Any:
                return getattr(self.real, name)

        self.SessionOptions, self.InferenceSession = Options, Session
        self.available = [*NAMES.values(), CPU]

    def get_available_providers(self) -> list[str]:
        return self.available

    def get_ep_devices(self) -> list[Any]:
        return self.devices if self.registered else []

    def register_execution_provider_library(self, name: str, path: str) -> None:
        self.registered.append((name, path))

    def __getattr__(self, name: str) -> Any:
        return getattr(real, name)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeOrt:
    made = FakeOrt()
    monkeypatch.setitem(sys.modules, "onnxruntime", made)
    monkeypatch.setattr(providers, "_plugin_library", lambda: "/cache/plugin.so")
    return made


def everything(session: Any) -> list[np.ndarray]:
    ids = np.random.default_rng(0).integers(0, 97, (2, 40))
    cache = session.empty_cache(2)
    results = [session.prefill(ids[:, :30], cache)]
    return results + [session.decode(ids[:, i : i + 1], cache) for i in range(30, 40)]


@pytest.mark.parametrize("provider", NAMES)
def test_sessions_of_gpu_providers_compute_the_same(provider: str, fake: FakeOrt, exported: Exported) -> None:
    """They load the weights themselves."""
    _, artifact = exported()
    session = open_session(artifact, provider=provider)
    assert (session.runtime, session.provider) == ("onnxruntime", provider)
    assert [asked[0][0] for asked in fake.asked] == [NAMES[provider]] * 2
    assert [asked[1:] for asked in fake.asked] == [[CPU]] * 2
    assert [(each.initializers, each.entries) for each in fake.options] == [([], [])] * 2
    for ours, other in zip(everything(session), everything(open_session(artifact)), strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-4, atol=1e-4)


def test_the_cpu_shares_weights_and_asks_for_nothing_else(fake: FakeOrt, exported: Exported) -> None:
    assert open_session(exported()[1]).provider == "cpu"
    assert fake.asked == [[CPU], [CPU]]
    assert all(options.initializers for options in fake.options)
    assert all(options.entries == [] for options in fake.options)  # a small model keeps packed weights


def test_other_runtimes_have_no_provider(exported: Exported) -> None:
    _, artifact = exported()
    assert open_session(artifact, "torch").provider is None
    with pytest.raises(LucidError, match="--provider is for onnxruntime; runtime torch has none"):
        open_session(artifact, "torch", provider="cuda")


@pytest.mark.parametrize(
    ("provider", "changes", "options"),
    [
        ("cuda", {}, {"device_id": "1", "use_tf32": "0"}),
        ("tensorrt", {}, {"device_id": "1", "trt_extra_plugin_lib_paths": "/cache/plugin.so"}),
        ("tensorrt", {"attention_type": "llama"}, {"device_id": "1"}),
        (
            "tensorrt",
            {"dtype": "float16"},
            {"device_id": "1", "trt_fp16_enable": "1", "trt_extra_plugin_lib_paths": "/cache/plugin.so"},
        ),
        ("nv-tensorrt-rtx", {}, {"device_id": "1"}),
    ],
    ids=str,
)
def test_options(
    provider: str, changes: dict[str, str], options: dict[str, str], fake: FakeOrt, exported: Exported
) -> None:
    open_session(exported(**changes)[1], device="cuda:1", provider=provider)
    assert fake.asked == [[(NAMES[provider], options), CPU]] * 2


def test_tensorrt_gets_the_plugin_library_registered(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done, library, trt = [], tmp_path / "plugin.so", SimpleNamespace()
    monkeypatch.setattr("lucid_deploy.engines.plugin_library.default_library", lambda: library)
    monkeypatch.setattr("lucid_deploy.engines.plugin_library.register", lambda *given: done.append(given))
    monkeypatch.setattr("lucid_deploy.engines.backend.load_backend", lambda name: SimpleNamespace(name=name, trt=trt))
    with pytest.raises(LucidError, match=r"no plugin library .*plugin\.so\. Run: lucid-deploy plugin build"):
        provider_options(exported()[1], "tensorrt", 0)
    monkeypatch.setattr("lucid_deploy.plugins.build.check_plugin", lambda path: None)
    assert provider_options(exported()[1], "tensorrt", 0)["trt_extra_plugin_lib_paths"] == str(library)
    assert done == [(library, trt)]


@pytest.mark.parametrize("provider", NAMES)
def test_a_provider_that_does_not_start_is_an_error(
    provider: str, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", FakeOrt(starts=False))
    monkeypatch.setattr(providers, "_plugin_library", lambda: "/cache/plugin.so")
    with pytest.raises(LucidError, match=rf"{NAMES[provider]} does not start, and onnxruntime .* went on with {CPU}"):
        open_session(exported()[1], provider=provider)


@pytest.mark.parametrize(
    ("provider", "install"),
    [
        ("cuda", "pip uninstall onnxruntime && pip install onnxruntime-gpu"),
        ("tensorrt", 'pip uninstall onnxruntime && pip install onnxruntime-gpu "lucid-deploy[trt]"'),
        ("nv-tensorrt-rtx", "pip install onnxruntime-ep-nv-tensorrt-rtx"),
    ],
)
@pytest.mark.parametrize("name", ["run", "verify"])
def test_a_provider_that_is_not_there_is_one_line(
    name: str, provider: str, install: str, fake: FakeOrt, exported: Exported
) -> None:
    fake.available = ["AzureExecutionProvider", CPU]
    rest = ["--prompt-ids", "5"] if name == "run" else []
    result = CliRunner().invoke(main, [name, str(exported()[1].directory), "--provider", provider, *rest])
    assert (result.exit_code, result.stdout, fake.asked) == (2, "", [])
    assert result.stderr == (
        f"Error: onnxruntime {real.__version__} has no {NAMES[provider]}; it has AzureExecutionProvider, {CPU}. "
        f"Run: {install}\n"
    )


def test_tensorrt_rtx_from_its_package(fake: FakeOrt, exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.available = [CPU]
    name, package = NAMES["nv-tensorrt-rtx"], ModuleType("onnxruntime_ep_nv_tensorrt_rtx")
    package.__spec__ = SimpleNamespace()  # type: ignore[assignment]
    package.get_ep_name, package.get_library_path = lambda: name, lambda: "/ep.so"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    with pytest.raises(LucidError, match=f"{name} finds 0 GPUs that it can use here; number 0 is not among them"):
        open_session(exported()[1], provider="nv-tensorrt-rtx")
    fake.devices.append(SimpleNamespace(ep_name=name))
    fake.registered.clear()
    assert open_session(exported()[1], provider="nv-tensorrt-rtx").provider == "nv-tensorrt-rtx"
    assert fake.registered == [(name, "/ep.so")]
    assert [options.chosen for options in fake.options] == [[name]] * 2


def test_what_is_refused(exported: Exported, fake: FakeOrt) -> None:
    _, artifact = exported()
    with pytest.raises(LucidError, match="Provider 'rocm' is not known; known are " + ", ".join(PROVIDERS)):
        open_session(artifact, provider="rocm")
    with pytest.raises(LucidError, match="Device 'tpu' is not known; known for this provider are cuda and cuda:N"):
        open_session(artifact, device="tpu", provider="cuda")
    with pytest.raises(LucidError, match="which has no bfloat16"):
        open_session(exported(dtype="bfloat16")[1], provider="cuda")
    with pytest.raises(LucidError, match="with --provider cuda export with --cache growing"):
        open_session(exported(cache="static")[1], provider="cuda")


@pytest.mark.parametrize(("provider", "named"), [("cpu", "onnxruntime"), ("cuda", "onnxruntime (cuda)")])
def test_run_says_what_ran(provider: str, named: str, fake: FakeOrt, exported: Exported) -> None:
    arguments = ["run", str(exported()[1].directory), "--prompt-ids", "5,7", "-n", "3", "--provider", provider]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.endswith(f"; {named}, float32\n")
    facts = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert (facts["runtime"], facts["provider"]) == ("onnxruntime", provider)


@pytest.mark.parametrize("name", ["run", "verify"])
def test_the_command_line_knows_the_same_providers(name: str) -> None:
    command = main.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    (option,) = [each for each in command.params if each.name == "provider"]
    assert tuple(option.type.choices) == PROVIDERS  # type: ignore[attr-defined]
