"""Sessions that run exported graphs in onnxruntime. Imports no torch."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.artifact import ADAPTERS, PACK_LIMIT, STAGES, VERIFY, WEIGHTS, Artifact
from lucid_deploy.artifact.external_data import follow_links
from lucid_deploy.artifact.read import ArtifactWatch
from lucid_deploy.cache.layout import CacheTensor
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.ort import import_onnxruntime
from lucid_deploy.runtimes.graph_sessions import ROWS, ArrayLayers, ArtifactSession, BoundStep, StaticSession
from lucid_deploy.runtimes.onnxruntime import CAPABILITIES
from lucid_deploy.runtimes.onnxruntime.compatibility import (
    check_version,
    choose_kernels,
    multiplies,
    multiplies_in_blocks,
)
from lucid_deploy.runtimes.onnxruntime.graph import ort_value, release_arena, use_arena
from lucid_deploy.runtimes.onnxruntime.providers import (
    ProviderPlan,
    check_available,
    check_chosen,
    choose_provider,
    plan_provider,
)
from lucid_deploy.runtimes.options import RuntimeOptions, device_index
from lucid_deploy.runtimes.session import Array, NewTokens

if TYPE_CHECKING:
    import onnx
    import onnxruntime as ort

CachedLayers = list[tuple[Any, ...]]
_READ_BY_KERNELS = ("float16", "int8")  # types of caches that operators of the library read as stored
# Operators of onnxruntime that may sum in another order if there are more rows; the library's operators do not.
_SUMS = {"MatMul", "Gemm", "MatMulNBits", "Attention", "LinearAttention", "Loop"}
_SHARED = "shared step"  # the stage that runs a piece of a prompt and a decode step of other rows together


class OrtSession(ArtifactSession[Any]):
    """Run an artifact's graphs; the cache stays in onnxruntime's own tensors.

    On the CPU, graphs share one mapping of the weights, except 4-bit ones; other providers load the file themselves.

    Attributes:
        reads_stored_cache: Whether decoding reads the cache as it is stored; if not, every step converts all of it to
            the model's type, as layers with a window, sinks or a soft cap do in any case; see
            :mod:`lucid_deploy.runtimes.passes.stored_cache`.
        options: The options it was opened with; on the CPU ``kernels`` says what computes our operators.
    """

    def __init__(self, artifact: Artifact, options: RuntimeOptions | None = None) -> None:
        ort = import_onnxruntime()
        options, manifest = options or RuntimeOptions(), artifact.manifest
        self._library = choose_kernels(options.kernels, options.provider, manifest.inline)
        check_version(ort.__version__, artifact)
        super().__init__(artifact, "onnxruntime", options.allow_extrapolation, CAPABILITIES[options.provider])
        self.provider: str = options.provider
        if self.provider == "cpu":
            self.kernels = "functions" if self._library is None else "library"
        self.options = replace(options, kernels=self.kernels or "auto")
        self._ort = ort
        # Chosen by measurement. With a packed copy of the weights, onnxruntime multiplies few rows (short prompts) up
        # to three times as fast, but not a single row. A large model has no packed copy unless it is quantized:
        # MatMulNBits without packed weights dequantizes them in every call, which is 100 times slower.
        self.quantization = manifest.quantization
        small = manifest.files[WEIGHTS]["size"] <= PACK_LIMIT
        self.packs_weights = self.provider == "cpu" and (small or self.quantization is not None)
        self.reads_stored_cache = self.cache_dtype == self.dtype
        self._sums_alike = False
        self._watch = ArtifactWatch(artifact)
        self._weights: dict[str, dict[str, Any]] = {}  # onnxruntime's sessions read them, so they must live as long
        if self.provider == "cpu":
            self._files = _map_weights(artifact)
            self._weights = _shared_weights(ort, artifact, self._files)
            release_arena()  # returns memory that earlier sessions no longer use
        self._graphs = {stage: self._load(stage) for stage in STAGES}
        self._output_names = [output.name for output in manifest.graphs["decode"].outputs]

    @property
    def label(self) -> str:
        if self.kernels == "library":
            return f"{self.runtime} (library kernels)"
        return self.runtime if self.provider == "cpu" else f"{self.runtime} ({self.provider})"

    @property
    def cuts_matter(self) -> bool:
        return self.rounds and not (self._sums_for_each_token and self.cache_dtype == self.dtype)

    @property
    def _sums_for_each_token(self) -> bool:
        """Whether a token's sums are computed in the same order however many tokens run in the same call."""
        # The library's kernels sum in one order. Exceptions are rings, which begin at any token, states, which are
        # computed in chunks, and head widths at which onnxruntime's cosine ends with an incomplete vector.
        whole = self.config.head_dim % 16 == 0 and all(one.sort == "rows" for layer in self.layout for one in layer)
        return self._sums_alike and whole and self.dtype == "float32"

    @property
    def fallback_hint(self) -> str | None:
        return "--kernels functions runs them without the library of kernels" if self.kernels == "library" else None

    def close(self) -> None:
        self.release_memory()

    def release_memory(self) -> None:
        if self.provider == "cpu":
            release_arena()

    def _limit_remedy(self, option: str, wanted: int) -> str:
        return "Engines of lucid-deploy build have limits of your own choice; run them with --runtime tensorrt."

    def _load(self, stage: str) -> ort.InferenceSession:
        of = "prefill" if stage == _SHARED else stage  # the graph whose weights it reads
        options, on_cpu = self._options(of), self.provider == "cpu"
        if on_cpu:
            # Threads wait by spinning within a run but not after it, where they would take the processor from the other
            # graph's threads, and from the code that uses the tokens, such as the event loop of a server.
            options.add_session_config_entry("session.force_spinning_stop", "1")
            use_arena(options)
        if on_cpu and not self.packs_weights:
            options.add_session_config_entry("session.disable_prepacking", "1")
        check_available(self._ort, self.provider)
        plan = plan_provider(self._artifact, self.provider, device_index(self.options.device), of)
        self.limits = plan.limits
        session = self._open(self._changed_graph(stage), plan.graph, options, plan)
        if self.quantization is not None and on_cpu:
            for file in self._files.values():  # packed copies of the weights have been made
                file.madvise(mmap.MADV_DONTNEED)
        return session

    def load_cut(self, stage: str, cut: bool) -> ort.InferenceSession:
        """Load a graph that outputs each layer's result; with ``cut`` each layer and the final norm reads an input."""
        import onnx

        from lucid_deploy.runtimes.passes.cut_layers import cut_layers

        model = onnx.ModelProto()
        model.CopyFrom(self._artifact.graph(stage))
        cut_layers(model, self.config.num_hidden_layers, cut)
        if self.provider == "cpu":
            self._change(model, stage)
        options = self._options(stage)
        if self.quantization is None:  # packed copies would cost more than they save in one run
            options.add_session_config_entry("session.disable_prepacking", "1")
        follow_links(model, self._artifact.directory)
        return self._open(model.SerializeToString(), self._artifact.graph_path(stage), options, None)

    def _options(self, stage: str) -> ort.SessionOptions:
        options = self._ort.SessionOptions()
        options.log_severity_level = 4 if self.provider == "cpu" else 3  # errors on the CPU are raised as well
        if (threads := self.options.thread_count) is not None:
            options.intra_op_num_threads = threads
        if self.quantization is not None:  # onnxruntime fuses DequantizeLinear and MatMul to MatMulNBits
            level = "4" if self.quantization.activations == "int8" else "0"
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
        for name, value in self._weights.get(stage, {}).items():
            options.add_initializer(name, value)
        if self._library is not None:
            options.register_custom_ops_library(str(self._library))
        return options

    def _open(
        self, graph: bytes | None, path: Path, options: ort.SessionOptions, plan: ProviderPlan | None
    ) -> ort.InferenceSession:
        """Load a serialized graph, or the file if ``graph`` is None, in the provider, without fallback to another."""
        index = device_index(self.options.device)
        providers = choose_provider(self._ort, options, self._artifact, self.provider, index, plan)
        if graph is not None:
            folder = (path.parent / WEIGHTS).resolve().parent
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        try:
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

    def _changed_graph(self, stage: str) -> bytes | None:
        """Return a stage's graph, serialized, after the passes for onnxruntime; None: load the unchanged file."""
        if self.provider != "cpu":
            return None
        if stage == _SHARED:
            from lucid_deploy.runtimes.passes.shared_step import share_step

            prompt, rows = (self._changed(each)[0] for each in STAGES)
            serialized: bytes = share_step(prompt, rows).SerializeToString()
            return serialized
        model, is_changed = self._changed(stage)
        return model.SerializeToString() if is_changed else None

    def _changed(self, stage: str) -> tuple[onnx.ModelProto, bool]:
        """Return a copy of a stage's graph after the passes, and whether they changed it."""
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self._artifact.graph(stage))
        changed = self._change(model, stage)
        follow_links(model, self._artifact.directory)
        return model, changed

    def _change(self, model: onnx.ModelProto, stage: str) -> bool:
        """Run the passes that a stage's graph needs to run at all, or fast; return whether they changed it."""
        from lucid_deploy.runtimes.passes import library_kernels, own_operators, stored_cache

        few, changed = stage != "prefill", False
        changed |= own_operators.use_rotary_embedding(model)
        if multiplies_in_blocks(self._library):
            changed |= library_kernels.use_quantized_matmul(model)
        if self._library is not None:
            changed |= library_kernels.use_expert_offsets(model)
        if self._library is not None and few:
            changed |= library_kernels.use_growing_attention(model)
            changed |= library_kernels.use_adapter_matmul(model)
            changed |= library_kernels.use_cached_attention(model)
        if few and multiplies(self._library):
            changed |= library_kernels.use_weight_matmul(model)
        changed |= own_operators.retype_fp4(model)
        if stage == "prefill":
            self._sums_alike = self._library is not None and not _SUMS & {node.op_type for node in model.graph.node}
        may_read = few and self._library is not None and self.cache_dtype in set(_READ_BY_KERNELS) - {self.dtype}
        if may_read and stored_cache.read_as_stored(model, self._artifact.graph_path(stage)):
            changed = self.reads_stored_cache = True
        return changed

    @property
    def multi_token_unsupported_reason(self) -> str | None:
        if self.provider != "cpu":
            return f"with --provider {self.provider} one new token is decoded at a time"
        return super().multi_token_unsupported_reason

    def prepare_several(self) -> None:
        """Load the graph that verifies drafts; raise LucidError if there is none, CheckFailed if files have changed.

        Weights that onnxruntime packs (none of a large float model) are packed again for this graph.
        If the library multiplies by quantized weights, all graphs share its packed copy of those.
        """
        super().prepare_several()
        if VERIFY not in self._graphs:
            self._watch.check()  # 4-bit weights are read from the files now, and must be those of the other graphs
            self._graphs[VERIFY] = self._load(VERIFY)

    def _to_array(self, tensor: CacheTensor, value: Any) -> Array:
        array: Array = value.numpy()
        return array

    def _from_array(self, tensor: CacheTensor, array: Array) -> Any:
        return ort_value(array, tensor.dtype)

    def _run(self, stage: str, tokens: NewTokens, layers: CachedLayers, keep: int) -> tuple[Array, CachedLayers]:
        make = self._ort.OrtValue.ortvalue_from_numpy
        feed = {name: make(array) for name, array in tokens.feed().items()} | self._named(layers)
        logits, *present = self._graphs[stage].run_with_ort_values(self._output_names, feed)
        return logits.numpy(), self._by_layer(present)


class StaticOrtSession(StaticSession, OrtSession):
    """An :class:`OrtSession` for graphs with a static cache, which write new rows into its buffers in place."""

    def _run_growing(self, tokens: NewTokens, layers: ArrayLayers, keep: int) -> tuple[Array, ArrayLayers]:
        values = [tuple(map(self._ort.OrtValue.ortvalue_from_numpy, layer)) for layer in layers]
        logits, present = OrtSession._run(self, "prefill", tokens, values, keep)
        return logits, [tuple(x.numpy() for x in layer) for layer in present]

    @property
    def shares_steps(self) -> bool:
        return self._sums_for_each_token

    def prepare_shared(self) -> None:
        if _SHARED not in self._graphs:
            self._watch.check()
            self._graphs[_SHARED] = self._load(_SHARED)

    def bind_arrays(
        self, inputs: dict[str, Array], layers: Sequence[tuple[Array, ...]], shared: bool = False
    ) -> tuple[Any, list[tuple[Array, Array]]]:
        prefix = ROWS if shared else ""
        graph = self._graphs[_SHARED if shared else "decode" if inputs["input_ids"].shape[1] == 1 else VERIFY]
        binding, make = graph.io_binding(), self._ort.OrtValue.ortvalue_from_numpy
        for name, array in inputs.items():
            binding.bind_ortvalue_input(prefix + name, make(array))
        binding.bind_output(f"{prefix}logits")
        replaced = []
        for index, (layout, layer) in enumerate(zip(self.layout, layers, strict=True)):
            for tensor, buffer in zip(layout, layer, strict=True):
                output = buffer if tensor.sort == "rows" else np.empty_like(buffer)  # rings and states are copied back
                binding.bind_ortvalue_input(f"{prefix}past_key_values.{index}.{tensor.name}", make(buffer))
                binding.bind_ortvalue_output(f"{prefix}present.{index}.{tensor.name}", make(output))
                if output is not buffer:
                    replaced.append((buffer, output))
        return (graph, binding), replaced

    def run_bound(self, binding: BoundStep) -> Array:
        graph, bound = binding.binding
        graph.run_with_iobinding(bound)
        logits: Array = bound.get_outputs()[0].numpy()  # not copied: a copy took 1/8 of the time of a step of 16 rows
        bound.bind_output("logits")  # else each binding keeps its logits; a server has a binding per step size
        binding.copy_back()
        return logits

    def _run_both(self, step: BoundStep, tokens: NewTokens, layers: ArrayLayers) -> tuple[Array, Array, ArrayLayers]:
        graph, bound = step.binding
        inputs, make = tokens.feed() | self._named(layers), self._ort.OrtValue.ortvalue_from_numpy
        for name, array in inputs.items():
            bound.bind_ortvalue_input(name, make(array))
        for name in self._output_names:
            bound.bind_output(name)
        graph.run_with_iobinding(bound)
        outputs = [value.numpy() for value in bound.get_outputs()]  # the rows' outputs were bound first
        logits, (last, *present) = outputs[0], outputs[-len(self._output_names) :]
        for name in (f"{ROWS}logits", *self._output_names):  # as in run_bound
            bound.bind_output(name)
        for name in inputs:
            bound.bind_ortvalue_input(name, make(np.zeros(0, np.float32)))
        return logits, last, self._by_layer(present)


def _map_weights(artifact: Artifact) -> dict[str, mmap.mmap]:
    """Map the weight files copy-on-write, so that no write can change the files."""
    mapped = {}
    for name in (WEIGHTS,) if artifact.manifest.adapters is None else (WEIGHTS, ADAPTERS):
        with artifact.path(name).open("rb") as file:
            mapped[name] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return mapped


def _shared_weights(ort: Any, artifact: Artifact, mapped: dict[str, mmap.mmap]) -> dict[str, dict[str, Any]]:
    """Return each graph's weights, except 4-bit integers, as onnxruntime tensors on one mapping of their files.

    E2M1 weights are converted to E4M3 copies. By default, onnxruntime maps (or copies) the file once per session.
    """
    import onnx

    from lucid_deploy.runtimes.passes.own_operators import widened

    files = {name: np.frombuffer(file, dtype=np.uint8) for name, file in mapped.items()}
    kinds: dict[int, Any] = {
        onnx.TensorProto.UINT8: np.uint8,
        onnx.TensorProto.INT8: np.int8,
        onnx.TensorProto.FLOAT: np.float32,
        onnx.TensorProto.FLOAT16: np.float16,
    }
    fp8, fp4 = onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT4E2M1  # which numpy does not know
    made: dict[tuple[str, int, tuple[int, ...]], Any] = {}
    weights: dict[str, dict[str, Any]] = {}
    for stage in artifact.manifest.graphs:
        weights[stage] = {}
        for weight in artifact.weights(stage):
            if weight.data_type not in (*kinds, fp8, fp4):  # 4-bit integers, unknown to numpy: each graph loads its own
                continue
            key, shape = (weight.file, weight.offset, weight.shape), weight.shape
            if key not in made:
                data = files[weight.file][weight.offset : weight.offset + weight.size]
                if weight.data_type in kinds:
                    view = data.view(kinds[weight.data_type]).reshape(shape)
                    made[key] = ort.OrtValue.ortvalue_from_numpy(view)
                else:
                    codes = data if weight.data_type == fp8 else widened(data, math.prod(shape))
                    made[key] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(codes.reshape(shape), fp8)
            weights[stage][weight.name] = made[key]
    return weights
