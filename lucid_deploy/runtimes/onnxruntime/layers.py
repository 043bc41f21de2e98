"""Run the layers of an exported graph one by one in onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.cache.layout import CacheTensor
from lucid_deploy.cache.storage import decode_layer, decoded_layout, encode_layer
from lucid_deploy.errors import CheckFailed
from lucid_deploy.runtimes.layers import Layers, LayerStates, NewTokens, Past
from lucid_deploy.runtimes.onnxruntime.graph import ort_value
from lucid_deploy.runtimes.onnxruntime.session import OrtSession
from lucid_deploy.runtimes.session import Array

if TYPE_CHECKING:
    import onnxruntime as ort

_NUMPY_TYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int8)": np.int8,
    "tensor(float8e4m3fn)": np.uint8,  # the codes' bytes
}
_OTHER_TYPES = {"tensor(float8e4m3fn)": "float8_e4m3fn"}


class OrtLayers(Layers):
    """Run a session's graphs with outputs for what layers compute and, if residuals are given, inputs for them.

    If onnxruntime reads weights from the mapped artifact file, a graph takes 1 to 4 MB, and all graphs that were run
    stay loaded. If it copies weights (to another type, layout or device), only the last graph stays loaded.
    """

    def __init__(self, session: OrtSession) -> None:
        super().__init__(session.config, session.dtype, session.cache_dtype, session.layers)
        self._whole = session
        is_mapped = session.dtype == "float32" and session.quantization is None and session.provider == "cpu"
        self._copies_weights = not is_mapped
        self._loaded: dict[tuple[str, bool], ort.InferenceSession] = {}

    def run(
        self, tokens: NewTokens, past: Past, residuals: list[Array] | None = None, decode: bool = False
    ) -> LayerStates:
        session = self._session("decode" if decode else "prefill", cut=residuals is not None)
        kinds = {item.name: item.type for item in session.get_inputs()}
        cached = tokens.past
        static = "cache_length" in kinds
        feed: dict[str, Array] = {"input_ids": tokens.input_ids, "position_ids": tokens.positions}
        feed["adapter_ids"] = np.full(len(tokens.mask), self._whole.default_adapter)
        if static:  # the buffers have room for the new row only, which the mask does not count yet
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
        results = session.run_with_ort_values(names, values)  # copied below, since results may share memory with inputs
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
            self._loaded[key] = self._whole.load_cut(stage, cut)
        return self._loaded[key]


def _with_room(tensor: CacheTensor, array: Array) -> Array:
    """Return a static cache's buffer: rows with room for one more, a ring padded left to its window, or a state."""
    if not tensor.has_tokens:
        return array
    batch, heads, held, width = array.shape
    room = np.zeros((batch, heads, 1 if tensor.window is None else tensor.window - held, width), dtype=array.dtype)
    return np.concatenate([array, room] if tensor.window is None else [room, array], axis=2)
