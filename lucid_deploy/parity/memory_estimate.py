"""Whether a verification of an artifact fits into memory."""

from __future__ import annotations

import math

from lucid_deploy.artifact import WEIGHTS, Artifact
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.parity.measure import memory
from lucid_deploy.parity.options import VerifyOptions
from lucid_deploy.parity.outside import OutsideReferences
from lucid_deploy.runtimes import find_runtime
from lucid_deploy.runtimes.runtime import Capabilities

SMALL_WEIGHTS = 1 << 30  # bytes


def memory_parts(
    artifact: Artifact, source: Checkpoint, options: VerifyOptions, outside: OutsideReferences | None = None
) -> memory.Parts:
    """Return what a verification takes beyond mapped files, by part, in bytes."""
    extent = options.extent
    tokens, decoded = memory.sequence_tokens(artifact.config, extent.steps, extent.prompt_tokens)
    rounds = artifact.manifest.cache_dtype != artifact.manifest.dtype or artifact.config.has_narrow_states
    sizes = _model_bytes(artifact, source)
    parts = {"programs": memory.FIXED, f"PyTorch in {artifact.manifest.dtype}": sizes["baseline"]}
    if rounds:
        parts["PyTorch in float64"] = sizes["float64"]
    runtime = find_runtime(options.runtime.runtime).capabilities(options.runtime)
    if runtime.copies_weights:
        parts["the artifact in its runtime"] = sizes["runtime"]
    parts |= memory.record_bytes(artifact.config, tokens, decoded, rounds)
    parts |= {} if outside is None else _outside(artifact, sizes["float64"], options, outside)
    return parts | (_explaining(artifact, tokens, runtime) if options.explain else {})


def check_memory(artifact: Artifact, parts: memory.Parts, explain: bool, free: int | None) -> None:
    """Refuse a verification that does not fit into memory, before anything large is opened.

    Args:
        artifact: What is to be verified.
        parts: From :func:`memory_parts`.
        explain: Whether causes are looked for in any case.
        free: Bytes that can be taken, from :func:`lucid_deploy.parity.measure.memory.available`; None: not known.

    Raises:
        LucidError: It takes more; the parts are named.
    """
    remedy = "Verify it on a machine with more memory, or end other programs."
    if explain:
        remedy += " Without --explain and --report it takes less."
    memory.check_fits(f"Verifying {artifact.directory}", parts, free, remedy)


def _explaining(artifact: Artifact, tokens: int, runtime: Capabilities) -> memory.Parts:
    """Return what looking for causes takes beside the rest."""
    parts = memory.explain_bytes(artifact.config, tokens)
    cut = runtime.reads_layers and runtime.copies_weights
    return {**parts, "the graphs cut into layers": _runtime_bytes(artifact)} if cut else parts


def _outside(artifact: Artifact, model: int, options: VerifyOptions, outside: OutsideReferences) -> memory.Parts:
    """Return what other references take: a model in float64 as large as ``model``, a file, and sequences of its own."""
    parts = {} if outside.model is None else {"transformers' model in float64": model}
    golden = outside.golden
    if golden is not None:
        tokens = golden.tokens_used(artifact.config.max_position_embeddings, options.extent)
        made = memory.record_bytes(artifact.config, tokens, tokens, rounds=False)
        parts["the golden file"] = sum(rows.values.nbytes for rows in golden.tensors.values())
        parts["its sequences"] = len(golden.ids) * sum(made.values())
    return parts


def _runtime_bytes(artifact: Artifact) -> int:
    """Return what a runtime takes for an artifact's weights beyond their mapped file.

    onnxruntime reads large float32 weights from there, all but a quarter, and copies small ones. Of float16 and
    quantized ones it keeps copies in the type or the layout that it computes with, as large as two of the file.
    """
    plain = artifact.manifest.dtype == "float32" and artifact.manifest.quantization is None
    size = int(artifact.manifest.files[WEIGHTS]["size"])
    return max(size // 4, min(size, SMALL_WEIGHTS)) if plain else 2 * size


def _model_bytes(artifact: Artifact, source: Checkpoint) -> dict[str, int]:
    """Return what models take beyond mapped files: weights of another type than they are stored in."""
    import torch

    dtype = getattr(torch, artifact.manifest.dtype)
    counts = {name: math.prod(shape) for name, shape in source.stored_shapes().items()}
    cast = [name for name in counts if artifact.manifest.quantization is not None or source.tensor(name).dtype != dtype]
    return {
        "baseline": sum(counts[name] for name in cast) * dtype.itemsize,
        "float64": sum(counts.values()) * 8,
        "runtime": _runtime_bytes(artifact),
    }
