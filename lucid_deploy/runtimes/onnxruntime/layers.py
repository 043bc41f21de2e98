"""The layers of an exported graph, one by one, in onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.artifact import Artifact
from lucid_deploy.cache.storage import cache_tensors, decode_layer, encode_layer
from lucid_deploy.errors import CheckFailed
from lucid_deploy.runtimes.last_token import last_token_logits
from lucid_deploy.runtimes.layers import Layers, Past, States, Tokens
from lucid_deploy.runtimes.onnxruntime.kernels import choose_kernels
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
}


class OrtLayers(Layers):
    """Runs an artifact's own graphs, cut between the layers or only looked into.

    The graphs are changed in memory, the weights stay in the artifact's file. A graph is loaded when it is first run,
    and one at a time is kept.

    Args:
        artifact: The opened artifact.
        options: As the session that is explained has them.
    """

    def __init__(self, artifact: Artifact, options: RuntimeOptions) -> None:
        self._library = choose_kernels(options.kernels, options.provider)
        super().__init__(artifact.config, artifact.manifest.dtype, artifact.manifest.cache_dtype)
        self._suffixes = [item.suffix for item in cache_tensors(self.cache_dtype, self.config.head_dim)]
        self._artifact, self._provider, self._index = artifact, options.provider, device_index(options.device)
        self._loaded: tuple[tuple[str, bool], ort.InferenceSession] | None = None

    def run(self, tokens: Tokens, past: Past, residuals: list[Array] | None = None, decode: bool = False) -> States:
        """See :meth:`Layers.run`."""
        session = self._session("decode" if decode else "prefill", cut=residuals is not None)
        kinds = {item.name: item.type for item in session.get_inputs()}
        cached = past[0][0].shape[2]
        static = "cache_length" in kinds
        feed: dict[str, Array] = {"input_ids": tokens.input_ids, "position_ids": tokens.positions}
        if static:  # buffers that end behind the new row
            feed["attention_mask"] = np.concatenate([tokens.mask[:, :-1], np.zeros_like(tokens.mask[:, -1:])], axis=1)
            feed["cache_length"] = np.full(len(tokens.mask), cached)
        else:
            feed["attention_mask"] = tokens.mask
        for layer, pair in enumerate(past):
            for suffix, rows in zip(self._suffixes, encode_layer(*pair, self.cache_dtype), strict=True):
                room = np.zeros((*rows.shape[:2], 1, rows.shape[3]), dtype=rows.dtype)
                feed[f"past_key_values.{layer}.{suffix}"] = np.concatenate([rows, room], axis=2) if static else rows
        feed.update({f"given.{layer}": residual for layer, residual in enumerate(residuals or [])})
        named = {name: np.ascontiguousarray(feed[name], dtype=_NUMPY_TYPES[kind]) for name, kind in kinds.items()}
        names = [output.name for output in session.get_outputs()]
        found = dict(zip(names, session.run(None, named), strict=True))
        found["logits"] = last_token_logits(found["logits"], tokens.mask)
        return self._states(found, slice(cached, None))

    def _states(self, found: dict[str, Array], new: slice) -> States:
        layers = range(self.config.num_hidden_layers)
        cached = [
            decode_layer(tuple(found[f"present.{layer}.{suffix}"][:, :, new] for suffix in self._suffixes))
            for layer in layers
        ]
        found = {name: array.astype(np.float32) for name, array in found.items()}
        if self.config.is_lucid and f"values.{layers[-1]}" not in found:
            raise CheckFailed("The graph's solves are not to be found, so its layers cannot be explained.")
        solved = [y for _, y in cached]
        values = [found[f"values.{layer}"] for layer in layers] if self.config.is_lucid else solved
        return States(
            residuals=[found[f"residual.{layer}"] for layer in range(len(layers) + 1)],
            keys=[k for k, _ in cached],
            values=values,
            solved=solved,
            logits=found["logits"],
        )

    def _session(self, stage: str, cut: bool) -> ort.InferenceSession:
        key = (stage, cut)
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # before the next one is loaded
            self._loaded = (key, self._load(stage, cut))
        return self._loaded[1]

    def _load(self, stage: str, cut: bool) -> ort.InferenceSession:
        import onnx
        import onnxruntime

        from lucid_deploy.runtimes.onnxruntime.cut_layers import cut_layers

        path = self._artifact.graph_path(stage)
        model = onnx.load(str(path), load_external_data=False)
        cut_layers(model, self.config.num_hidden_layers, cut)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        if self._library is not None:
            options.register_custom_ops_library(str(self._library))
        record = self._artifact.manifest.quantization
        if record is None:
            options.add_session_config_entry("session.disable_prepacking", "1")  # a second copy, for one run
        else:  # as in the session: without packed weights a quantized product is another one, and slow
            level = "4" if record.activations == "int8" else "0"
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
        providers: Any = choose_provider(onnxruntime, options, self._artifact, self._provider, self._index)
        try:  # without its fallback, which is the CPU
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=providers or None, enable_fallback=0
            )
        except Exception as error:
            raise CheckFailed(f"onnxruntime cannot load the layers of {path}: {error}") from error
        check_chosen(onnxruntime, session, self._provider)
        return session
