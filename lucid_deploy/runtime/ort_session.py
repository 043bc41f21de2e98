"""The exported graphs in onnxruntime, behind the session interface. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.artifact import STAGES, WEIGHTS, Artifact
from lucid_deploy.errors import CheckFailed, LucidError, missing_extra
from lucid_deploy.runtime.session import Array, Cache, Session

if TYPE_CHECKING:
    import onnxruntime as ort

Layers = list[tuple[Any, Any]]

_PACK_LIMIT = 1 << 30  # bytes of weights up to which prefill keeps a packed copy of them

_NUMPY_TYPES = {"float32": np.float32, "float16": np.float16}


class OrtSession(Session[Any]):
    """Runs an artifact's prefill and decode graphs; the cache stays in onnxruntime's own tensors.

    Both graphs read one mapping of the weight file.

    Args:
        artifact: The opened artifact.
        threads: Threads within an operator; None lets onnxruntime choose.
        allow_extrapolation: Whether contexts beyond ``max_position_embeddings`` are permitted.

    Raises:
        LucidError: onnxruntime is not installed, or has no kernels for the artifact's type.
        CheckFailed: onnxruntime cannot load a graph.
    """

    def __init__(self, artifact: Artifact, threads: int | None = None, allow_extrapolation: bool = False) -> None:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise missing_extra("onnxruntime", "cpu", "run an exported artifact") from error
        if artifact.manifest.dtype not in _NUMPY_TYPES:
            raise LucidError(
                f"onnxruntime has no CPU kernels for {artifact.manifest.dtype}. Export with --dtype float32 or float16 "
                "to run on a CPU."
            )
        super().__init__(artifact.config, artifact.manifest.dtype, "onnxruntime", allow_extrapolation)
        self._ort = ort
        # Chosen by measurement, see docs/performance.md. Packed weights are a second copy: they make short prompts
        # up to half again as fast and one-token products no faster, so only prefill packs, and only a small model.
        self.packs_prefill = artifact.manifest.files[WEIGHTS]["size"] <= _PACK_LIMIT
        self._weights = _shared_weights(ort, artifact, _NUMPY_TYPES[self.dtype])  # must live as long as the sessions
        self._prefill = _load(ort, artifact, "prefill", threads, self._weights["prefill"], self.packs_prefill)
        self._decode = _load(ort, artifact, "decode", threads, self._weights["decode"], pack=False)
        self._output_names = [output.name for output in artifact.manifest.graphs["decode"].outputs]

    def layer_arrays(self, cache: Cache[Any]) -> list[tuple[Array, Array]]:
        """See :meth:`Session.layer_arrays`."""
        return [(_to_numpy(k), _to_numpy(y)) for k, y in cache.layers]

    def _layers_from_arrays(self, layers: list[tuple[Array, Array]]) -> Layers:
        kind = _NUMPY_TYPES[self.dtype]

        def make(array: Array) -> Any:
            return self._ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array, dtype=kind))

        return [(make(k), make(y)) for k, y in layers]

    def _run_prefill(self, input_ids: Array, mask: Array, positions: Array, layers: Layers) -> tuple[Array, Layers]:
        logits, present = self._run(self._prefill, input_ids, mask, positions, layers)
        if logits.shape[1] > 1:  # an artifact with --logits all
            index = input_ids.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)
            logits = np.take_along_axis(logits, np.maximum(index, 0)[:, None, None], axis=1)
        return logits, present

    def _run_decode(self, input_ids: Array, mask: Array, positions: Array, layers: Layers) -> tuple[Array, Layers]:
        return self._run(self._decode, input_ids, mask, positions, layers)

    def _run(
        self,
        session: ort.InferenceSession,
        input_ids: Array,
        mask: Array,
        positions: Array,
        layers: Layers,
    ) -> tuple[Array, Layers]:
        make = self._ort.OrtValue.ortvalue_from_numpy
        feed = {
            "input_ids": make(np.ascontiguousarray(input_ids)),
            "attention_mask": make(mask.astype(np.int64)),
            "position_ids": make(np.ascontiguousarray(positions)),
        }
        for index, (key, value) in enumerate(layers):
            feed[f"past_key_values.{index}.key"] = key
            feed[f"past_key_values.{index}.value"] = value
        logits, *present = session.run_with_ort_values(self._output_names, feed)
        return logits.numpy(), list(zip(present[::2], present[1::2], strict=True))


def _shared_weights(ort: Any, artifact: Artifact, kind: Any) -> dict[str, dict[str, Any]]:
    """Map the weight file once, and return each graph's weights as onnxruntime tensors on that one mapping.

    Left to itself, onnxruntime maps (or copies) the file once for each session.
    """
    import onnx

    file = np.memmap(artifact.path(WEIGHTS), dtype=np.uint8, mode="c")  # copy on write: nothing can change the file
    made: dict[tuple[int, tuple[int, ...]], Any] = {}
    weights: dict[str, dict[str, Any]] = {}
    for stage in STAGES:
        graph = onnx.load(str(artifact.graph_path(stage)), load_external_data=False).graph
        weights[stage] = {}
        for tensor in graph.initializer:
            place = {entry.key: entry.value for entry in tensor.external_data}
            if not place:
                continue
            offset, shape = int(place["offset"]), tuple(tensor.dims)
            if (offset, shape) not in made:
                view = file[offset : offset + int(place["length"])].view(kind).reshape(shape)
                made[offset, shape] = ort.OrtValue.ortvalue_from_numpy(view)
            weights[stage][tensor.name] = made[offset, shape]
    return weights


def _load(
    ort: Any, artifact: Artifact, stage: str, threads: int | None, weights: dict[str, Any], pack: bool
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    if not pack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    for name, value in weights.items():
        options.add_initializer(name, value)
    path = artifact.graph_path(stage)
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CheckFailed(f"onnxruntime {ort.__version__} cannot load {path}: {error}") from error


def _to_numpy(value: Any) -> Array:
    array = value.numpy()
    return array.astype(np.float32) if array.dtype == np.float16 else array
