"""The exported graphs in onnxruntime, behind the session interface. Imports no torch."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.artifact import PACK_LIMIT, STAGES, VERIFY, WEIGHTS, Artifact
from lucid_deploy.artifact.read import ArtifactWatch
from lucid_deploy.cache.layout import CacheTensor, first_tokens
from lucid_deploy.cache.storage import decode_layer, encode_layer
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.ort import import_onnxruntime
from lucid_deploy.plugins.table import DECODE_ATTENTION, DECODE_ATTENTION_INT8, DELTA_RULE
from lucid_deploy.runtimes.onnxruntime.arena import release_arena, use_arena
from lucid_deploy.runtimes.onnxruntime.capabilities import capabilities_of
from lucid_deploy.runtimes.onnxruntime.graph import ort_value
from lucid_deploy.runtimes.onnxruntime.kernels import choose_kernels, multiplies, multiplies_in_blocks
from lucid_deploy.runtimes.onnxruntime.linear_attention import has_linear_attention
from lucid_deploy.runtimes.onnxruntime.providers import (
    check_available,
    check_chosen,
    choose_provider,
    plan_provider,
)
from lucid_deploy.runtimes.onnxruntime.versions import check_version, has_quantize_linear
from lucid_deploy.runtimes.onnxruntime.widen_fp4 import has_fp4, retype_fp4, widened
from lucid_deploy.runtimes.options import RuntimeOptions, device_index
from lucid_deploy.runtimes.session import Array, Cache, NewTokens, Session

if TYPE_CHECKING:
    import onnx
    import onnxruntime as ort

    from lucid_deploy.runtimes.tensorrt.limits import Limits

log = logging.getLogger(__name__)

Layers = list[tuple[Any, ...]]
_READ_BY_KERNELS = ("float16", "int8")  # types of caches that the library has operators for
_READ_BY_BODY = "int8"  # the type that there is a body for


class OrtSession(Session[Any]):
    """Runs an artifact's prefill and decode graphs; the cache stays in onnxruntime's own tensors.

    On the CPU both graphs read one mapping of the weight file; other providers load the file themselves.

    Attributes:
        reads_stored_cache: Whether decoding reads a cache of another type than the model's as it is stored; otherwise
            all of it is converted in every step. The library of kernels has operators for float16 and int8. On the CPU
            without it, onnxruntime 1.25 and newer reads int8 in contexts of up to 262,144 tokens, with a body in
            standard operators. See :mod:`lucid_deploy.runtimes.stored_cache`.
        options: What it was opened with; ``kernels`` says what was chosen.

    Args:
        artifact: The opened artifact.
        options: See :class:`~lucid_deploy.runtimes.options.RuntimeOptions`; None: the defaults.

    Raises:
        LucidError: onnxruntime has not the provider, or is a version that computes this artifact wrongly, or the
            library of kernels is wanted and cannot be used.
        CheckFailed: onnxruntime cannot load a graph.
    """

    def __init__(self, artifact: Artifact, options: RuntimeOptions | None = None) -> None:
        ort = import_onnxruntime()
        options, manifest = options or RuntimeOptions(), artifact.manifest
        self._library = choose_kernels(options.kernels, options.provider, manifest.inline)
        check_version(ort.__version__, artifact)
        super().__init__(
            artifact.config,
            manifest.dtype,
            "onnxruntime",
            options.allow_extrapolation,
            capabilities_of(options),
            manifest.cache_dtype,
            manifest.layers,
        )
        self.identity = artifact.identity
        self.provider: str = options.provider
        if self.provider == "cpu":
            self.kernels = "functions" if self._library is None else "library"
        self.options = replace(options, kernels=self.kernels or "auto")
        self.limits: Limits | None = None
        self._all_logits = artifact.manifest.logits == "all"
        self._ort = ort
        # Chosen by measurement, see docs/performance.md. A packed copy of the weights makes onnxruntime's products of
        # few rows (short prompts) up to three times as fast, those of one row no faster; a large model does without.
        # MatMulNBits without packed weights dequantizes them for every product, which is 100 times slower.
        self._quantization = artifact.manifest.quantization
        small = artifact.manifest.files[WEIGHTS]["size"] <= PACK_LIMIT
        self.packs_weights = self.provider == "cpu" and (small or self._quantization is not None)
        self.reads_stored_cache = self.cache_dtype == self.dtype
        self._artifact, self._watch = artifact, ArtifactWatch(artifact)
        self._weights: dict[str, dict[str, Any]] = {}  # must live as long as the sessions
        if self.provider == "cpu":
            self._weights = _shared_weights(ort, artifact)
            release_arena()  # of what earlier sessions have left
        self._graphs = {stage: self._load(artifact, stage, self._changed_graph(artifact, stage)) for stage in STAGES}
        self._output_names = [output.name for output in artifact.manifest.graphs["decode"].outputs]

    @property
    def label(self) -> str:
        if self.kernels == "library":
            return f"{self.runtime} (library kernels)"
        return self.runtime if self.provider == "cpu" else f"{self.runtime} ({self.provider})"

    @property
    def fallback_hint(self) -> str | None:
        return "--kernels functions runs them without the library of kernels" if self.kernels == "library" else None

    def close(self) -> None:
        self.release_memory()

    def release_memory(self) -> None:
        if self.provider == "cpu":
            release_arena()

    def _load(self, artifact: Artifact, stage: str, graph: bytes | None) -> ort.InferenceSession:
        options = self._ort.SessionOptions()
        options.log_severity_level = 4 if self.provider == "cpu" else 3  # what fails there raises in the same words
        if (threads := self.options.thread_count) is not None:
            options.intra_op_num_threads = threads
        if self.provider == "cpu":
            # Threads wait by spinning within a run, not after it: that would take the processor from the other graph's
            # threads, and from the code that uses the tokens, such as the event loop of a server.
            options.add_session_config_entry("session.force_spinning_stop", "1")
            use_arena(options)
        if self.provider == "cpu" and not self.packs_weights:
            options.add_session_config_entry("session.disable_prepacking", "1")
        if self._quantization is not None:  # how onnxruntime fuses DequantizeLinear and MatMul
            level = "4" if self._quantization.activations == "int8" else "0"
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
        for name, value in self._weights.get(stage, {}).items():
            options.add_initializer(name, value)
        if self._library is not None:
            options.register_custom_ops_library(str(self._library))
        check_available(self._ort, self.provider)
        index = device_index(self.options.device)
        plan = plan_provider(artifact, self.provider, index, stage)
        providers = choose_provider(self._ort, options, artifact, self.provider, index, plan)
        path, self.limits = plan.graph, plan.limits
        if graph is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        try:  # without its fallback, which is the CPU
            session = self._ort.InferenceSession(
                str(path) if graph is None else graph, options, providers=providers or None, enable_fallback=0
            )
        except Exception as error:
            message = f"onnxruntime {self._ort.__version__} cannot load {path}"
            if self.provider == "cpu":
                raise CheckFailed(f"{message}: {error}") from error
            raise LucidError(f"{message} with --provider {self.provider}: {error}") from error
        check_chosen(self._ort, session, self.provider)
        return session

    @property
    def _has_kernels_for_cache(self) -> bool:
        """Whether the library is there and can read a cache that has another type than the model, and a layer does."""
        is_read = self.cache_dtype != self.dtype and self.cache_dtype in _READ_BY_KERNELS
        return self._library is not None and is_read and self._has_decode_attention

    @property
    def _has_decode_attention(self) -> bool:
        """Whether a layer decodes by the operator that reads a cache; standard attention has one of ONNX."""
        return any(layer.uses(DECODE_ATTENTION.name, "decode") for layer in self.layers)

    @property
    def _has_body_for_cache(self) -> bool:
        """Whether bodies compute, and there is one that can read the cache up to the longest context."""
        from lucid_deploy.runtimes.stored_cache import MOST_TOKENS_IN_BODY

        is_body = self.provider == "cpu" and self._library is None and not self._artifact.manifest.inline
        is_body = is_body and self.cache_dtype == _READ_BY_BODY and has_quantize_linear(self._ort.__version__)
        is_body = is_body and self._has_decode_attention
        return is_body and self.context_limit is not None and self.context_limit <= MOST_TOKENS_IN_BODY

    def _changed_graph(self, artifact: Artifact, stage: str) -> bytes | None:
        """Return a stage's graph with what onnxruntime computes better, None where the file is loaded as it is."""
        is_body = self.provider == "cpu" and self._library is None  # the library has a faster kernel
        recurs = is_body and any(layer.uses(DELTA_RULE.name, stage) for layer in self.layers)
        recurs = recurs and has_linear_attention(self._ort.__version__)
        few = stage != "prefill"
        reads = few and (self._has_kernels_for_cache or (self._has_body_for_cache and stage == "decode"))
        widens = self.provider == "cpu" and has_fp4(artifact.graph(stage))
        by_library = self._library is not None and (few or self._quantization is not None)
        if not recurs and not reads and not widens and not by_library:
            return None
        import onnx

        from lucid_deploy.runtimes.onnxruntime.linear_attention import use_linear_attention
        from lucid_deploy.runtimes.stored_cache import attach_body

        model = onnx.ModelProto()
        model.CopyFrom(artifact.graph(stage))
        changed = recurs and use_linear_attention(model)
        changed |= by_library and self._use_library(model, few)
        if widens:
            retype_fp4(model)
            changed = True
        if reads and self._read_as_stored(artifact, stage, model):
            changed = self.reads_stored_cache = True
            if self._library is None:
                attach_body(model, DECODE_ATTENTION_INT8)
        return model.SerializeToString() if changed else None

    def _use_library(self, model: onnx.ModelProto, few: bool) -> bool:
        """Let the library compute what onnxruntime could too, more where tokens are few; return whether it does."""
        from lucid_deploy.runtimes.onnxruntime.growing_attention import use_growing_attention
        from lucid_deploy.runtimes.onnxruntime.quantized_matmul import use_quantized_matmul
        from lucid_deploy.runtimes.onnxruntime.weight_matmul import use_weight_matmul

        changed = multiplies_in_blocks(self._library) and use_quantized_matmul(model)
        changed |= few and use_growing_attention(model)
        return (few and multiplies(self._library) and use_weight_matmul(model)) or changed

    def _read_as_stored(self, artifact: Artifact, stage: str, model: onnx.ModelProto) -> bool:
        """Let a graph read the stored cache; a warning says why it cannot."""
        from lucid_deploy.runtimes.stored_cache import read_as_stored

        obstacles = read_as_stored(model)
        if obstacles:
            log.warning(
                "%s: decoding converts all of its %s cache in every step, which is slow, since the graph is not as "
                "lucid-deploy export writes it (%s). Export it again to have the cache read as it is stored.",
                artifact.graph_path(stage),
                self.cache_dtype,
                "; ".join(obstacles),
            )
        return not obstacles

    @property
    def multi_token_unsupported_reason(self) -> str | None:
        if self.provider != "cpu":
            return f"with --provider {self.provider} one new token is decoded at a time"
        return self._artifact.drafts_unsupported_reason

    def prepare_several(self) -> None:
        """Load the graph that verifies drafts; raise a CheckFailed if the files have changed.

        It has one more packed copy of what onnxruntime multiplies by: a small model's weights and quantized ones, where
        the library does not multiply by them.
        """
        super().prepare_several()
        if VERIFY not in self._graphs:
            self._watch.check()  # its weights of 4 bits would come from the files as they are now
            self._graphs[VERIFY] = self._load(self._artifact, VERIFY, self._changed_graph(self._artifact, VERIFY))

    @property
    def prefill_chunk(self) -> int:
        # As many as a provider's optimization profile accepts
        return super().prefill_chunk if self.limits is None else self.limits.prefill_chunk

    def prefill(
        self,
        input_ids: Array,
        cache: Cache[Any],
        mask: Array | None = None,
        chunk: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Array:
        # No chunk is longer than a provider's optimization profile accepts
        if self.limits is not None:
            chunk = min(chunk if chunk is not None else self.limits.prefill_chunk, self.limits.prefill_chunk)
        return super().prefill(input_ids, cache, mask, chunk, progress)

    @property
    def context_limit(self) -> int | None:
        # A provider's optimization profile holds in any case
        limit = super().context_limit
        return limit if self.limits is None else min(limit or self.limits.max_context, self.limits.max_context)

    @property
    def batch_limit(self) -> int | None:
        return None if self.limits is None else self.limits.max_batch

    def _checked(self, input_ids: Array, cache: Cache[Any]) -> Array:
        input_ids = super()._checked(input_ids, cache)
        if self.limits is None:
            return input_ids
        for found, most, what in (
            (cache.batch, self.limits.max_batch, "rows"),
            (cache.length + input_ids.shape[1], self.limits.max_context, "tokens"),
        ):
            if found > most:
                raise LucidError(
                    f"With --provider {self.provider} up to {most} {what} can be run, not {found}. Engines of "
                    "lucid-deploy build have limits of your own choice; run them with --runtime tensorrt."
                )
        return input_ids

    def layer_arrays(self, cache: Cache[Any]) -> list[tuple[Array, ...]]:
        pairs = zip(self.layout, cache.layers, strict=True)
        return [decode_layer([x.numpy() for x in layer], layout) for layout, layer in pairs]

    def _layers_from_arrays(self, layers: list[tuple[Array, ...]]) -> Layers:
        return [
            tuple(ort_value(x, t.dtype) for t, x in zip(layout, encode_layer(arrays, layout), strict=True))
            for layout, arrays in zip(self.layout, layers, strict=True)
        ]

    def _first_tokens(self, cache: Cache[Any], length: int) -> Layers:
        def cut(tensor: CacheTensor, value: Any) -> Any:
            # Of one row and head the first tokens are contiguous, and would be memory of a tensor that is let go of.
            return ort_value(first_tokens(tensor, value.numpy(), length, cache.mask).copy(), tensor.dtype)

        pairs = zip(self.layout, cache.layers, strict=True)
        return [tuple(map(cut, layout, layer)) for layout, layer in pairs]  # as stored: nothing is rounded twice

    @property
    def gives_all_logits(self) -> bool:
        # With ``--logits all``, and no provider that limits a run's length
        return self._all_logits and self.limits is None

    def _run(self, stage: str, tokens: NewTokens, layers: Layers, keep: int) -> tuple[Array, Layers]:
        make = self._ort.OrtValue.ortvalue_from_numpy
        feed = {name: make(array) for name, array in tokens.feed().items()}
        for index, (layout, layer) in enumerate(zip(self.layout, layers, strict=True)):
            for tensor, value in zip(layout, layer, strict=True):
                feed[f"past_key_values.{index}.{tensor.name}"] = value
        logits, *present = self._graphs[stage].run_with_ort_values(self._output_names, feed)
        rest = iter(present)
        return logits.numpy(), [tuple(next(rest) for _ in layout) for layout in self.layout]


def _shared_weights(ort: Any, artifact: Artifact) -> dict[str, dict[str, Any]]:
    """Map the weight file once, and return each graph's weights as onnxruntime tensors on that one mapping.

    Left to itself, onnxruntime maps (or copies) the file once for each session.
    """
    import onnx

    file = np.memmap(artifact.path(WEIGHTS), dtype=np.uint8, mode="c")  # copy on write: nothing can change the file
    kinds: dict[int, Any] = {
        onnx.TensorProto.UINT8: np.uint8,
        onnx.TensorProto.INT8: np.int8,
        onnx.TensorProto.FLOAT: np.float32,
        onnx.TensorProto.FLOAT16: np.float16,
    }
    fp8, fp4 = onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT4E2M1  # which numpy does not know
    made: dict[tuple[int, tuple[int, ...]], Any] = {}
    weights: dict[str, dict[str, Any]] = {}
    for stage in artifact.manifest.graphs:
        weights[stage] = {}
        for weight in artifact.weights(stage):
            if weight.data_type not in (*kinds, fp8, fp4):  # Python has no integers of 4 bits: each graph loads its own
                continue
            offset, shape = weight.offset, weight.shape
            if (offset, shape) not in made:
                data = file[offset : offset + weight.size]
                if weight.data_type in kinds:
                    view = data.view(kinds[weight.data_type]).reshape(shape)
                    made[offset, shape] = ort.OrtValue.ortvalue_from_numpy(view)
                else:
                    codes = data if weight.data_type == fp8 else widened(data, math.prod(shape))
                    made[offset, shape] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(codes.reshape(shape), fp8)
            weights[stage][weight.name] = made[offset, shape]
    return weights
