"""Tensors that share numpy's memory, and one memory arena for all graphs on the CPU.

By default each session of onnxruntime has its own arena, a pool that keeps all memory it has ever allocated. The
decode graph could not use the prefill graph's arena, and would allocate as much again for the same cache.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.cache.layout import Array
from lucid_deploy.ort import import_onnxruntime

if TYPE_CHECKING:
    import onnxruntime as ort

_lock = threading.Lock()
_keeper: ort.InferenceSession | None = None  # created with the arena; both live as long as the process
_KEEPER = '<ir_version: 8, opset_import: ["": 13]> keeper (float[1] x) => (float[1] y) { y = Neg(x) }'


def ort_value(array: Array, dtype: str | None = None) -> Any:
    """Return a CPU tensor that shares the memory of an array (or of its contiguous copy) and keeps the array alive.

    The tensor's ``numpy()`` shares the memory too; do not use it longer than the tensor. Pass FP8 as uint8 codes.
    """
    ort = import_onnxruntime()
    array = np.ascontiguousarray(array)
    if (dtype or array.dtype.name) == "float8_e4m3fn":
        import onnx

        kind = onnx.TensorProto.FLOAT8E4M3FN
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint8), kind)
    return ort.OrtValue.ortvalue_from_numpy(array)


def use_arena(options: ort.SessionOptions) -> None:
    """Let the session that will be opened with these options allocate in the shared arena."""
    _the_keeper()
    options.add_session_config_entry("session.use_env_allocators", "1")


def release_arena() -> None:
    """Return the arena's unused regions, 1 MiB to 1 GiB each, to the system; onnxruntime does so only after a run."""
    keeper, options = _the_keeper(), import_onnxruntime().RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    keeper.run(None, {"x": np.zeros(1, np.float32)}, options)


def _the_keeper() -> ort.InferenceSession:
    """Create the arena once; return the session that owns its first region, which is small and never released."""
    global _keeper
    with _lock:
        if _keeper is None:
            import onnx

            ort = import_onnxruntime()
            place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
            ort.create_and_register_allocator(place, None)
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            options.log_severity_level = 4  # errors are raised as well
            options.add_session_config_entry("session.use_env_allocators", "1")
            model = onnx.parser.parse_model(_KEEPER).SerializeToString()
            keeper = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            keeper.run(None, {"x": np.zeros(1, np.float32)})
            _keeper = keeper
        return _keeper
