"""A fake onnxruntime, whose GPU providers compute on the CPU and which records the options it gets."""

from __future__ import annotations

import shutil
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import onnxruntime as real
import pytest

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.export.functions import function_proto
from lucid_deploy.plugins.table import DOMAIN
from lucid_deploy.runtimes.onnxruntime.providers import CPU

NAMES = {
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "nv-tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
}
ATTRIBUTES = {"plugin_namespace": b"ai.lucid", "plugin_version": b"1"}


def for_the_cpu(path: str) -> bytes | str:
    """Give plugin nodes in a graph that was prepared for TensorRT their function bodies back; change nothing else."""
    model = onnx.load(path, load_external_data=False)
    nodes = [node for node in model.graph.node if node.domain == "trt.plugins"]
    for node in nodes:
        told = {each.name: each.s for each in node.attribute if each.name in ATTRIBUTES}
        assert told == ATTRIBUTES
        kept = [each for each in node.attribute if each.name not in ATTRIBUTES]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.domain = DOMAIN
    if not nodes:
        return path
    model.functions.extend(function_proto(name) for name in sorted({node.op_type for node in nodes}))
    model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return model.SerializeToString()


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
            def __init__(self, model: str | bytes, options: Any, providers: Any, enable_fallback: int) -> None:
                assert enable_fallback == 0
                fake.asked.append(providers)
                fake.options.append(options)
                names = [item if isinstance(item, str) else item[0] for item in providers or options.chosen]
                self.names = [name for name in names if starts or name == CPU]
                if isinstance(model, str):
                    folder = "session.model_external_initializers_file_folder_path"
                    real.SessionOptions.add_session_config_entry(options, folder, str(Path(model).parent))
                    model = for_the_cpu(model)
                self.real = real.InferenceSession(model, options, providers=[CPU])

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


def use_library(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    library = folder / "plugin.so"
    library.write_bytes(b"stand-in")
    monkeypatch.setattr("lucid_deploy.runtimes.tensorrt.plugin_library.default_library", lambda: library)
    monkeypatch.setattr("lucid_deploy.plugins.hosts.tensorrt.build.check_plugin", lambda path: None)
    monkeypatch.setattr("lucid_deploy.plugins.hosts.tensorrt.registry.register_plugins", lambda path, trt: None)
    backend = SimpleNamespace(name="tensorrt", trt=SimpleNamespace())
    monkeypatch.setattr("lucid_deploy.runtimes.tensorrt.backend.load_backend", lambda name: backend)


def copy_of(artifact: Artifact, folder: Path) -> Artifact:
    return open_artifact(shutil.copytree(artifact.directory, folder / "artifact"))
