"""A GPU and TensorRT contexts that are neither: memory is a dictionary of arrays, an engine is onnxruntime.

Addresses, shapes, copies with a pitch and recorded graphs behave as on a device; memory is NaN until it is written.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort

from lucid_deploy.artifact import VERIFY, Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.onnxruntime.graph import ort_value
from lucid_deploy.runtimes.tensorrt.engine_contexts import Engines
from lucid_deploy.runtimes.tensorrt.limits import choose_limits, profile_shapes
from lucid_deploy.runtimes.tensorrt.manifest import EngineFile, EngineManifest

KINDS = {"tensor(int64)": np.int64, "tensor(float)": np.float32, "tensor(float16)": np.float16}
KINDS["tensor(float8e4m3fn)"] = np.uint8
OTHER = {"tensor(float8e4m3fn)": "float8_e4m3fn"}  # types that numpy does not know
POISON = 0xFF  # every byte of new memory: NaN in all float types


class FakeDevice:
    """See :class:`lucid_deploy.runtimes.tensorrt.device.Device`."""

    name, capability, stream = "fake", 86, 7

    def __init__(self) -> None:
        self._memory: dict[int, np.ndarray] = {}
        self._starts: list[int] = []
        self._next = 0x1000
        self.recording: list[Callable[[], None]] | None = None
        self.allocated = self.uploaded = self.recorded = self.replayed = self.dropped = 0

    def activate(self) -> None:
        pass

    def allocate(self, size: int) -> int:
        assert size >= 1 and self.recording is None, "memory is not allocated while recording"
        address, self._next = self._next, self._next + size + 0x1000
        self._memory[address] = np.full(size, POISON, np.uint8)
        self._starts.append(address)
        self.allocated += 1
        return address

    def free(self, address: int) -> None:
        del self._memory[address]
        self._starts.remove(address)

    def in_use(self) -> int:
        return len(self._memory)

    def at(self, address: int, size: int) -> np.ndarray:
        """Return ``size`` bytes of memory; they must lie inside one allocation."""
        start = self._starts[bisect.bisect_right(self._starts, address) - 1]
        memory = self._memory[start]
        assert address - start + size <= memory.size, "outside of what was allocated"
        return memory[address - start : address - start + size]

    def fill_zero(self, address: int, size: int) -> None:
        self.at(address, size)[:] = 0

    def upload(self, address: int, array: np.ndarray) -> None:
        assert array.flags.c_contiguous and self.recording is None
        self.uploaded += array.nbytes
        self.at(address, array.nbytes)[:] = np.frombuffer(array.tobytes(), np.uint8)

    def download(self, array: np.ndarray, address: int) -> None:
        assert array.flags.c_contiguous and self.recording is None
        array.reshape(-1).view(np.uint8)[:] = self.at(address, array.nbytes)

    def copy_rows(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, rows: int) -> None:
        if self.recording is not None:
            self.recording.append(lambda: self.copy_rows(target, target_pitch, source, source_pitch, width, rows))
            return
        for row in range(rows):
            data = self.at(source + row * source_pitch, width).copy()
            self.at(target + row * target_pitch, width)[:] = data

    def record(self, work: Callable[[], None]) -> Any:
        self.recording, self.recorded = [], self.recorded + 1
        work()
        graph, self.recording = self.recording, None
        return graph

    def replay(self, graph: list[Callable[[], None]]) -> None:
        self.replayed += 1
        for call in graph:
            call()

    def drop(self, graph: Any) -> None:
        self.dropped += 1
        graph.clear()


class FakeContext:
    """See ``tensorrt.IExecutionContext``: runs a stage's exported graph in onnxruntime, on the device's memory."""

    def __init__(self, device: FakeDevice, session: ort.InferenceSession, profile: dict[str, Any]) -> None:
        self._device, self._session, self._profile = device, session, profile
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.fails = False
        self.runs = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self._profile[name]
        self.shapes[name] = shape
        return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == self._device.stream
        if self.fails:
            return False
        shapes, addresses = dict(self.shapes), dict(self.addresses)  # what a recording keeps
        if self._device.recording is not None:
            self._device.recording.append(lambda: self._run(shapes, addresses))
        else:
            self._run(shapes, addresses)
        return True

    def _run(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        self.runs += 1
        feed = {}
        for value in self._session.get_inputs():
            kind = np.dtype(KINDS[value.type])
            shape = shapes[value.name]
            size = int(np.prod(shape)) * kind.itemsize
            feed[value.name] = self._device.at(addresses[value.name], size).view(kind).reshape(shape).copy()
        values = {
            value.name: ort_value(feed[value.name], OTHER.get(value.type)) for value in self._session.get_inputs()
        }
        outputs = self._session.get_outputs()
        found = self._session.run_with_ort_values([value.name for value in outputs], values)
        for value, array in zip(outputs, (each.numpy() for each in found), strict=True):
            self._device.at(addresses[value.name], array.nbytes)[:] = np.frombuffer(array.tobytes(), np.uint8)


def _graph(artifact: Artifact, stage: str) -> bytes:
    return artifact.graph_path(stage).read_bytes()


def fake_engines(
    artifact: Artifact, device: FakeDevice, speculate: bool = False, **limits: int
) -> tuple[Engines, dict[str, list[FakeContext]]]:
    """Return engines of an artifact on a fake device, and the contexts that were made of them."""
    chosen = choose_limits(artifact, **limits)
    stages = ("prefill", "decode", VERIFY) if speculate else ("prefill", "decode")
    profiles = {stage: profile_shapes(artifact, stage, chosen) for stage in stages}
    files = {stage: EngineFile(f"{stage}.engine", 1, "", profile, {}) for stage, profile in profiles.items()}
    manifest = EngineManifest("tensorrt-rtx", "1", "1", (), chosen, False, {}, None, files)
    options = ort.SessionOptions()
    options.log_severity_level = 3  # here a static cache is copied, of which onnxruntime warns
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(artifact.directory))
    sessions = {stage: ort.InferenceSession(_graph(artifact, stage), options) for stage in profiles}
    made: dict[str, list[FakeContext]] = {stage: [] for stage in profiles}

    def make_context(stage: str) -> FakeContext:
        context = FakeContext(device, sessions[stage], profiles[stage])
        made[stage].append(context)
        return context

    tensors = {
        stage: frozenset(value.name for value in [*session.get_inputs(), *session.get_outputs()])
        for stage, session in sessions.items()
    }
    return Engines(manifest, make_context, tensors), made


def has_gpu() -> bool:
    """Return whether this machine has a GPU that sessions could run on."""
    from lucid_deploy.runtimes.tensorrt.device import open_device

    try:
        open_device()
    except LucidError:
        return False
    return True
