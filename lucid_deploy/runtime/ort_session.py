"""The exported graphs in onnxruntime, behind the session interface. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.artifact import PACK_LIMIT, STAGES, WEIGHTS, Artifact
from lucid_deploy.errors import CheckFailed, LucidError, missing_extra
from lucid_deploy.runtime.providers import check_chosen, check_provider, choose_provider
from lucid_deploy.runtime.session import Array, Cache, Session

if TYPE_CHECKING:
    import onnxruntime as ort

Layers = list[tuple[Any, Any]]

_NUMPY_TYPES = {"float32": np.float32, "float16": np.float16}


class OrtSession(Session[Any]):
    """Runs an artifact's prefill and decode graphs; the cache stays in onnxruntime's own tensors.

    On the CPU both graphs read one mapping of the weight file; other providers load the file themselves.

    Args:
        artifact: The opened artifact.
        threads: Threads within an operator; None lets onnxruntime choose.
        allow_extrapolation: Whether contexts beyond ``max_position_embeddings`` are permitted.
        provider: The execution provider, one of :data:`~lucid_deploy.runtime.providers.PROVIDERS`.
        index: Number of the GPU, for providers that use one.

    Raises:
        LucidError: onnxruntime is not installed, has no kernels for the artifact's type, or not the provider.
        CheckFailed: onnxruntime cannot load a graph.
    """

    def __init__(
        self,
        artifact: Artifact,
        threads: int | None = None,
        allow_extrapolation: bool = False,
        provider: str = "cpu",
        index: int = 0,
    ) -> None:
        check_provider(provider)
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise missing_extra("onnxruntime", "cpu", "run an exported artifact") from error
        if artifact.manifest.dtype not in _NUMPY_TYPES:
            raise LucidError(
                f"onnxruntime has no CPU kernels for {artifact.manifest.dtype}. Export with --dtype float32 or float16 "
                "to run on a CPU."
                if provider == "cpu"
                else f"With onnxruntime the cache goes through numpy, which has no {artifact.manifest.dtype}. Export "
                "with --dtype float32 or float16, or run with --runtime tensorrt."
            )
        super().__init__(artifact.config, artifact.manifest.dtype, "onnxruntime", allow_extrapolation)
        self.provider: str = provider
        self._ort = ort
        # Chosen by measurement, see docs/performance.md. A packed copy of the weights makes products of few rows (short
        # prompts, batches of decode) up to three times as fast, those of one row no faster; a large model does without.
        self.packs_weights = provider == "cpu" and artifact.manifest.files[WEIGHTS]["size"] <= PACK_LIMIT
        self._weights: dict[str, dict[str, Any]] = {}  # must live as long as the sessions
        if provider == "cpu":
            self._weights = _shared_weights(ort, artifact, _NUMPY_TYPES[self.dtype])
        self._prefill = self._load(artifact, "prefill", threads, index)
        self._decode = self._load(artifact, "decode", threads, index)
        self._output_names = [output.name for output in artifact.manifest.graphs["decode"].outputs]

    def _load(self, artifact: Artifact, stage: str, threads: int | None, index: int) -> ort.InferenceSession:
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        if self.provider == "cpu" and not self.packs_weights:
            options.add_session_config_entry("session.disable_prepacking", "1")
        for name, value in self._weights.get(stage, {}).items():
            options.add_initializer(name, value)
        providers = choose_provider(self._ort, options, artifact, self.provider, index)
        path = artifact.graph_path(stage)
        try:  # without its fallback, which is the CPU
            session = self._ort.InferenceSession(str(path), options, providers=providers or None, enable_fallback=0)
        except Exception as error:
            message = f"onnxruntime {self._ort.__version__} cannot load {path}"
            if self.provider == "cpu":
                raise CheckFailed(f"{message}: {error}") from error
            raise LucidError(f"{message} with --provider {self.provider}: {error}") from error
        check_chosen(self._ort, session, self.provider)
        return session

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


def _to_numpy(value: Any) -> Array:
    array = value.numpy()
    return array.astype(np.float32) if array.dtype == np.float16 else array
