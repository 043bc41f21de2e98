"""llama.cpp with standard attention of an artifact's shape, as a worker of the benchmark.

It is run by the package ``xllamacpp``, which brings llama.cpp compiled. Times are llama.cpp's own, of its server's
answers: ``prompt_ms`` and ``predicted_per_token_ms``.
"""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xllamacpp
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quant_shape_to_byte_shape, quantize
from numpy.typing import NDArray

from lucid_deploy.artifact import Artifact
from lucid_deploy.artifact.quantization import weight_and_rows
from lucid_deploy.bench.machine import has_avx512, reset_peak, resident_bytes
from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import LUCID, STANDARD, LucidConfig
from lucid_deploy.processors import allowed_threads

TYPES = {
    "float32": GGMLQuantizationType.F32,
    "float16": GGMLQuantizationType.F16,
    "bfloat16": GGMLQuantizationType.BF16,
    "int8": GGMLQuantizationType.Q8_0,
    "int4": GGMLQuantizationType.Q4_0,
}
_DEVIATION = 0.02  # of random weights, as transformers initializes them
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
FIRST_WORD = 4  # the ids below are special, or a byte
_CACHE_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "Q8_0"}
_ROOM = 256  # tokens of context are given in these steps
_WITHOUT_AVX512 = (
    "this llama.cpp was compiled without AVX-512, which this processor has. For what it can do here, compile it here: "
    "pip install --force-reinstall --no-deps --no-binary xllamacpp xllamacpp"
)


class LlamaCppWorker:
    """Run llama.cpp's server with one row.

    Weights have the artifact's type, int8 and int4 as Q8_0 and Q4_0, and the cache has the artifact's type. Batches
    within a prompt are as llama.cpp chooses them.

    Args:
        artifact: Whose shape and types it takes.
        threads: Threads; None: as many as this process may use.
    """

    def __init__(self, artifact: Artifact, threads: int | None = None) -> None:
        started = time.perf_counter()
        self._config, manifest = artifact.config, artifact.manifest
        if others := {layer.kind for layer in manifest.layers} - {LUCID, STANDARD}:
            raise LucidError(
                "--baseline llama.cpp measures models whose layers all attend to all tokens; this one has layers of "
                f"the kind {', '.join(sorted(others))}."
            )
        record = manifest.quantization
        tensors = [] if record is None else record.tensors
        head = {name for name in tensors if weight_and_rows(name)[0] in (EMBEDDING, HEAD)}
        if record is not None and len({record.bits_of(name) for name in record.tensors.keys() - head}) > 1:
            raise LucidError(
                f"--baseline llama.cpp gives weights of all layers the same bits, and those of {artifact.directory} "
                "have 4 and 8. Leave it out, or measure an artifact of one kind."
            )
        in_8_bits = record is not None and any(record.bits_of(name) == 8 for name in head)
        self._weights = manifest.dtype if record is None else record.scheme
        if self._weights not in TYPES:
            raise LucidError(
                f"--baseline llama.cpp has no weights in {self._weights}, as {artifact.directory} has. Leave it out, "
                "or measure an artifact with --quantize int8 or int4."
            )
        if manifest.cache_dtype not in _CACHE_TYPES:
            raise LucidError(
                f"--baseline llama.cpp has no cache in {manifest.cache_dtype}, the type of {artifact.directory}. "
                "Leave it out, or measure an artifact with --cache-dtype int8."
            )
        self._cache_dtype = manifest.cache_dtype
        self._threads = threads or allowed_threads() or len(os.sched_getaffinity(0))
        self._folder = tempfile.TemporaryDirectory(prefix="lucid-gguf-")
        self._path = Path(self._folder.name) / "shape.gguf"
        write_gguf(self._config, self._weights, self._path, "int8" if in_8_bits else self._weights)
        self._room = 0
        self._filled: int | None = None  # tokens of context that the server has computed for decoding
        self._start(_ROOM)
        self._seconds = time.perf_counter() - started

    def open(self) -> dict[str, Any]:
        """As :meth:`lucid_deploy.bench.worker.Worker.open`; ``remark`` says that another build would be faster."""
        compiled_for = instruction_sets(xllamacpp.get_system_info())
        return {
            "seconds": self._seconds,
            "resident": resident_bytes("VmRSS"),
            "runtime": "llama.cpp",
            "provider": f"xllamacpp {importlib.metadata.version('xllamacpp')}, compiled for {', '.join(compiled_for)}",
            "kernels": None,
            "dtype": self._weights,
            "remark": _WITHOUT_AVX512 if has_avx512() and "AVX512" not in compiled_for else None,
        }

    def prefill(self, batch: int, length: int, chunk: int | None) -> dict[str, Any]:
        """Time one prompt of random tokens, nothing of it known before."""
        assert chunk is None  # refused before: llama.cpp chooses how a prompt is cut
        prompt = self._prompt(batch, length, seed=time.perf_counter_ns())
        reset_peak()
        timings = self._complete(prompt, 1, known=False)
        if timings["prompt_n"] != length:
            raise LucidError(f"llama.cpp computed {timings['prompt_n']} of {length} tokens; nothing was measured.")
        return {"seconds": timings["prompt_ms"] / 1000, "peak": resident_bytes("VmHWM")}

    def decode(self, batch: int, context: int, steps: int) -> dict[str, Any]:
        """Time tokens behind a context; the result is seconds per token."""
        prompt = self._prompt(batch, context, seed=0)
        if self._filled != context:
            self._complete(prompt, 1, known=True)
            self._filled = context
        reset_peak()
        timings = self._complete(prompt, steps + 1, known=True)
        if timings["predicted_n"] != steps + 1 or timings["cache_n"] < context - 1:
            raise LucidError(f"llama.cpp did not go on behind {context} tokens as it was asked; nothing was measured.")
        return {"seconds": timings["predicted_per_token_ms"] / 1000, "peak": resident_bytes("VmHWM")}

    def _prompt(self, batch: int, length: int, seed: int) -> list[int]:
        assert batch == 1  # others are refused before
        ids = np.random.default_rng(seed).integers(FIRST_WORD, self._config.vocab_size, length)
        return [int(number) for number in ids]

    def _complete(self, prompt: list[int], new: int, known: bool) -> dict[str, Any]:
        """Return llama.cpp's timings of a completion; with ``known``, what the last prompt shares is not computed."""
        self._start(len(prompt) + new)
        request = {"prompt": prompt, "n_predict": new, "cache_prompt": known, "ignore_eos": True, "temperature": 0.0}
        answer = self._server.handle_completions(request)
        if "timings" not in answer:
            raise LucidError(f"llama.cpp answered without times: {answer}")
        timings: dict[str, Any] = answer["timings"]
        return timings

    def _start(self, tokens: int) -> None:
        """Start the server, or another one if its context is too small."""
        if tokens <= self._room:
            return
        self._room = -(-tokens // _ROOM) * _ROOM
        self._filled = None
        params = xllamacpp.CommonParams()
        params.model.path = str(self._path)
        params.n_ctx, params.n_parallel, params.n_gpu_layers = self._room, 1, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self._threads
        kind = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{_CACHE_TYPES[self._cache_dtype]}")
        params.cache_type_k = params.cache_type_v = kind
        params.cache_ram_mib = 0  # no second copies of caches
        params.rope_freq_base = float(self._config.rope_theta)
        self._server = xllamacpp.Server(params)


def instruction_sets(info: str) -> list[str]:
    """Return what llama.cpp says it was compiled for, as in ``CPU : SSE3 = 1 | AVX = 1 | OPENMP = 1 |``."""
    switches = (item.partition("=") for item in info.rpartition(" : ")[2].split("|"))
    return [name.strip() for name, _, value in switches if value.strip() == "1"]


def write_gguf(config: LucidConfig, dtype: str, path: Path, head: str = "") -> None:
    """Write the file; embedding and head have a type of their own if ``head`` is given."""
    if config.vocab_size < 2 * FIRST_WORD:
        raise LucidError(f"llama.cpp needs a vocabulary of more than {config.vocab_size} tokens to be measured.")
    writer = GGUFWriter(path, "llama")
    _describe(config, writer)
    generator = np.random.default_rng(0)
    for name, shape in _shapes(config):
        kind = head if head and name in ("token_embd.weight", "output.weight") else dtype
        chosen = TYPES[kind] if len(shape) == 2 else GGMLQuantizationType.F32
        try:
            quant_shape_to_byte_shape(shape, chosen)
        except ValueError as error:
            raise LucidError(
                f"llama.cpp has no {chosen.name} form of {name}: its rows of {shape[-1]} are no whole blocks of 32. "
                "Measure it beside a float32 or float16 artifact."
            ) from error
        writer.add_tensor(name, _values(generator, shape, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _values(
    generator: np.random.Generator, shape: tuple[int, ...], chosen: GGMLQuantizationType
) -> NDArray[np.generic]:
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    values = generator.standard_normal(shape, dtype=np.float32) * np.float32(_DEVIATION)
    found: NDArray[np.generic] = quantize(values, chosen)
    return found


def _describe(config: LucidConfig, writer: GGUFWriter) -> None:
    """Write sizes, and a vocabulary whose words mean nothing."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    words = config.vocab_size - FIRST_WORD
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", "<0x0A>", *(f"w{number}" for number in range(words))])
    writer.add_token_scores([0.0] * config.vocab_size)
    special = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE]
    writer.add_token_types([*special, *[TokenType.NORMAL] * words])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _shapes(config: LucidConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield llama.cpp's names with shapes ``(out, in)``."""
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    yield "token_embd.weight", (config.vocab_size, width)
    yield "output_norm.weight", (width,)
    if not config.tie_word_embeddings:
        yield "output.weight", (config.vocab_size, width)
    for layer in range(config.num_hidden_layers):
        for name, shape in {
            "attn_norm": (width,),
            "attn_q": (queries, width),
            "attn_k": (keys, width),
            "attn_v": (keys, width),
            "attn_output": (width, queries),
            "ffn_norm": (width,),
            "ffn_gate": (inner, width),
            "ffn_up": (inner, width),
            "ffn_down": (width, inner),
        }.items():
            yield f"blk.{layer}.{name}.weight", shape
