"""Run the layers of an exported graph one by one in onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.artifact import WEIGHTS, Artifact
from lucid_deploy.cache.layout import CacheTensor
from lucid_deploy.cache.storage import decode_layer, decoded_layout, encode_layer
from lucid_deploy.errors import CheckFailed
from lucid_deploy.ort import import_onnxruntime
from lucid_deploy.runtimes.layers import Layers, LayerStates, NewTokens, Past
from lucid_deploy.runtimes.onnxruntime.compatibility import choose_kernels, multiplies, multiplies_in_blocks
from lucid_deploy.runtimes.onnxruntime.graph import ort_value
from lucid_deploy.runtimes.onnxruntime.providers import check_chosen, choose_provider
from lucid_deploy.runtimes.options import RuntimeOptions, device_index
from lucid_deploy.runtimes.session import Array

if TYPE_CHECKING:
    import onnxruntime as ort

_NUMPY_TYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int8)": np.int8,
    "tensor(float8e4m3fn)": np.uint8,  # codes
}
_OTHER_TYPES = {"tensor(float8e4m3fn)": "float8_e4m3fn"}


class OrtLayers(Layers):
    """Runs an artifact's own graphs, cut between the layers or with more outputs.

    The graphs are changed in memory, the weights stay in the artifact's file. A graph is loaded when it is first run.
    Where onnxruntime reads the weights from the file, a graph takes 1 to 4 MB and all are kept; where it copies them
    (into another type or layout, or to another device), only one is.

    Args:
        artifact: The opened artifact.
        options: Those of the session that is explained.
    """

    def __init__(self, artifact: Artifact, options: RuntimeOptions) -> None:
        manifest = artifact.manifest
        self._library = choose_kernels(options.kernels, options.provider, manifest.inline)
        super().__init__(artifact.config, manifest.dtype, manifest.cache_dtype, manifest.layers)
        self._artifact, self._provider, self._index = artifact, options.provider, device_index(options.device)
        self._copies_weights = (
            manifest.dtype != "float32" or manifest.quantization is not None or options.provider != "cpu"
        )
        self._loaded: dict[tuple[str, bool], ort.InferenceSession] = {}

    def run(
        self, tokens: NewTokens, past: Past, residuals: list[Array] | None = None, decode: bool = False
    ) -> LayerStates:
        session = self._session("decode" if decode else "prefill", cut=residuals is not None)
        kinds = {item.name: item.type for item in session.get_inputs()}
        cached = tokens.past
        static = "cache_length" in kinds
        feed: dict[str, Array] = {"input_ids": tokens.input_ids, "position_ids": tokens.positions}
        if static:  # buffers that end behind the new row
            feed["attention_mask"] = np.concatenate([tokens.mask[:, :-1], np.zeros_like(tokens.mask[:, -1:])], axis=1)
            feed["cache_length"] = np.full(len(tokens.mask), cached)
        else:
            feed["attention_mask"] = tokens.mask
        for index, (layer, arrays) in enumerate(zip(self.layers, past, strict=True)):
            for tensor, array in zip(layer.cache, encode_layer(arrays, layer.cache), strict=True):
                feed[f"past_key_values.{index}.{tensor.name}"] = _with_room(tensor, array) if static else array
        feed.update({f"given.{layer}": residual for layer, residual in enumerate(residuals or [])})
        named = {name: np.ascontiguousarray(feed[name], dtype=_NUMPY_TYPES[kind]) for name, kind in kinds.items()}
        names = [output.name for output in session.get_outputs()]
        values = {name: ort_value(array, _OTHER_TYPES.get(kinds[name])) for name, array in named.items()}
        results = session.run_with_ort_values(names, values)  # an array may be the memory of an input
        found = {name: value.numpy().copy() for name, value in zip(names, results, strict=True)}
        found["logits"] = tokens.last_logits(found["logits"])
        return self._states(found, slice(cached, None))

    def _states(self, found: dict[str, Array], new: slice) -> LayerStates:
        cached = []
        for index, layer in enumerate(self.layers):
            stored = [(t, found[f"present.{index}.{t.name}"]) for t in layer.cache]
            rows = [array[:, :, new] if tensor.sort == "rows" else array for tensor, array in stored]
            names = [tensor.name for tensor in decoded_layout(layer.cache)]
            cached.append(dict(zip(names, decode_layer(rows, layer.cache), strict=True)))
        found = {name: array.astype(np.float32) for name, array in found.items()}
        solving = [index for index, layer in enumerate(self.layers) if layer.solves]
        if solving and f"values.{len(solving) - 1}" not in found:
            raise CheckFailed("The graph's functions were inlined, so layers cannot be compared one by one.")
        values = {index: found[f"values.{place}"] for place, index in enumerate(solving)}
        return LayerStates(
            residuals=[found[f"residual.{index}"] for index in range(len(self.layers) + 1)],
            cached=cached,
            given=[values.get(index) for index in range(len(self.layers))],
            logits=found["logits"],
        )

    def _session(self, stage: str, cut: bool) -> ort.InferenceSession:
        key = (stage, cut)
        if key not in self._loaded:
            if self._copies_weights:
                self._loaded.clear()  # before the next one is loaded
            self._loaded[key] = self._load(stage, cut)
        return self._loaded[key]

    def _load(self, stage: str, cut: bool) -> ort.InferenceSession:
        import onnx

        from lucid_deploy.runtimes.passes.cut_layers import cut_layers
        from lucid_deploy.runtimes.passes.library_kernels import use_quantized_matmul, use_weight_matmul
        from lucid_deploy.runtimes.passes.own_operators import retype_fp4

        path, model = self._artifact.graph_path(stage), onnx.ModelProto()
        model.CopyFrom(self._artifact.graph(stage))
        cut_layers(model, self.config.num_hidden_layers, cut)
        retype_fp4(model, self._artifact.path(WEIGHTS))
        if stage == "decode" and multiplies(self._library):  # as in the session
            use_weight_matmul(model)
        if multiplies_in_blocks(self._library):
            use_quantized_matmul(model)
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 4 if self._provider == "cpu" else 3  # what fails on the CPU is raised as well
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        if self._library is not None:
            options.register_custom_ops_library(str(self._library))
        record = self._artifact.manifest.quantization
        if record is None:
            options.add_session_config_entry("session.disable_prepacking", "1")  # a second copy, for one run
        else:  # as in the session: without packed weights a quantized product is another one, and slow
            level = "4" if record.activations == "int8" else "0"
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
        providers: Any = choose_provider(ort, options, self._artifact, self._provider, self._index)
        try:  # without its fallback, which is the CPU
            session = ort.InferenceSession(
                model.SerializeToString(), options, providers=providers or None, enable_fallback=0
            )
        except Exception as error:
            raise CheckFailed(f"onnxruntime cannot load the layers of {path}: {error}") from error
        check_chosen(ort, session, self._provider)
        return session


def _with_room(tensor: CacheTensor, array: Array) -> Array:
    """Return a buffer of a static cache with what a growing one holds, and room for the new row."""
    if not tensor.has_tokens:
        return array
    batch, heads, held, width = array.shape
    room = np.zeros((batch, heads, 1 if tensor.window is None else tensor.window - held, width), dtype=array.dtype)
    return np.concatenate([array, room] if tensor.window is None else [room, array], axis=2)
