"""One memory arena for all graphs on the CPU.

By default each session of onnxruntime has an arena of its own, which keeps what it once took. What a prompt's graph has
left there is of no use to the graph that decodes, which takes as much again for the same cache.
"""

from __future__ import annotations

import threading
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from lucid_deploy.ort import import_onnxruntime

if TYPE_CHECKING:
    import onnxruntime as ort

_lock = threading.Lock()
_keeper: ort.InferenceSession | None = None  # made with the arena, which lives as long as the process


def use_arena(options: ort.SessionOptions) -> None:
    """Let a session that is yet to be opened allocate in the arena that others have too."""
    _the_keeper()
    options.add_session_config_entry("session.use_env_allocators", "1")


def release_arena() -> None:
    """Give back to the system what no tensor lies in: regions of 1 MiB to 1 GiB.

    That takes a run of a tiny graph.
    """
    keeper, options = _the_keeper(), import_onnxruntime().RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    keeper.run(None, {"x": np.zeros(1, np.float32)}, options)


def _the_keeper() -> ort.InferenceSession:
    global _keeper
    with _lock:
        if _keeper is None:
            _keeper = _make(import_onnxruntime())
        return _keeper


def _make(ort: ModuleType) -> ort.InferenceSession:
    """Make the arena, and return the session that takes its first region, which is never given back: a small one."""
    from onnx import TensorProto, helper

    numbers = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "keeper", numbers[:1], numbers[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(place, None)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # what fails there raises in the same words
    options.add_session_config_entry("session.use_env_allocators", "1")
    keeper = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    keeper.run(None, {"x": np.zeros(1, np.float32)})
    return keeper
