"""Describe an artifact and the memory it needs, from its manifest and graphs: no weights are loaded."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from lucid_deploy.artifact import PACK_LIMIT, STAGES, WEIGHTS, Artifact, whole_pages
from lucid_deploy.artifact.quantization import PACKED
from lucid_deploy.cache.layout import ITEM_SIZES, bytes_per_token, layout_bytes
from lucid_deploy.model.description import layout_of, summarize
from lucid_deploy.plugins.table import DOMAIN, EXPERT_MATMUL, QUANTIZED_EXPERT_MATMUL
from lucid_deploy.runtimes.onnxruntime.compatibility import describe_kernels, multiplies_in_blocks

_RUNTIME = 125 * 2**20  # bytes; resident memory of Python and onnxruntime 1.32 with a model's graphs, weights aside
_SCORE_TENSORS = 4  # tensors of the attention scores' size at once: scores, exponentials, and intermediate results
_DECODED = 4  # float32 tensors that exist at once: K and Y of a layer, before and after multiplying by scales


def describe(artifact: Artifact, batch: int = 1, context: int | None = None) -> dict[str, Any]:
    """Describe an artifact as plain data, with the memory for a batch and a context in tokens (None: the longest)."""
    manifest = artifact.manifest
    return {
        "artifact": str(artifact.directory),
        "model": manifest.config.to_dict(),
        "summary": summary(artifact),
        "remarks": remarks(artifact),
        "assumed_unused": manifest.assumed_unused,
        "hub": manifest.hub,
        "options": manifest.options,
        "dtype": manifest.dtype,
        "cache": manifest.cache,
        "cache_dtype": manifest.cache_dtype,
        "logits": manifest.logits,
        "inline": manifest.inline,
        "forms": forms(artifact),
        "forms_left_out": manifest.forms_left_out,
        "opset": manifest.opset,
        "operators": {"domain": DOMAIN, "version": manifest.operators},
        "source": manifest.source,
        "adapter": manifest.adapter,
        "versions": manifest.versions,
        "files": manifest.files,
        "layers": [asdict(layer) for layer in manifest.layers],
        "quantization": None if manifest.quantization is None else manifest.quantization.to_dict(),
        "compression": compression(artifact),
        "weight_types": weight_types(artifact),
        "parameters": parameters(artifact),
        "kernels": describe_kernels(),
        "graphs": {stage: _graph(artifact, stage) for stage in manifest.graphs},
        "memory": memory_needed(artifact, batch, context or manifest.config.max_position_embeddings),
    }


def summary(artifact: Artifact) -> str:
    """Return the model and the form of the artifact in one line."""
    manifest = artifact.manifest
    cache_dtype = "" if manifest.cache_dtype == manifest.dtype else f" in {manifest.cache_dtype}"
    model = f"{summarize(manifest.config)}, {manifest.numbers}"
    if manifest.forms:
        *names, last = (each.form for each in manifest.each_form())
        return f"{model}, {', '.join(names)} and {last} graphs{cache_dtype and f', cache{cache_dtype}'}"
    return f"{model}, {manifest.cache} cache{cache_dtype}{', inlined graphs' if manifest.inline else ''}"


def forms(artifact: Artifact) -> list[dict[str, Any]]:
    """Return the forms in which the artifact has its graphs, with the files of each, as plain data."""
    return [
        {
            "name": each.form,
            "cache": each.cache,
            "inline": each.inline,
            "opset": each.opset,
            "files": {stage: graph.file for stage, graph in each.graphs.items()},
        }
        for each in artifact.manifest.each_form()
    ]


def remarks(artifact: Artifact) -> list[str]:
    """Return sentences about the checkpoint's origin, adapters, forms left out, and decisions made at export."""
    manifest = artifact.manifest
    hub = manifest.hub
    found = [] if hub is None else [f"From the Hugging Face Hub: {hub['repository']}, commit {hub['commit']}."]
    assumed = [f"Assumed unused: {key}, which is {value!r}." for key, value in manifest.assumed_unused.items()]
    adapter = [] if manifest.adapter is None else [f"The LoRA adapter {manifest.adapter} is in its weights."]
    if manifest.adapters is not None:
        slots, names = manifest.adapters, ", ".join(each.name for each in artifact.adapters()) or "none"
        adapter.append(f"Adapters of each row: {names}; room for {slots.count} of rank {slots.rank}.")
    missing = [f"It has no {name} graphs: {reason}" for name, reason in manifest.forms_left_out.items()]
    return [*found, *adapter, *missing, *manifest.notes, *assumed]


def compression(artifact: Artifact) -> float:
    """Return how many times larger the weight file, padding to pages included, would be if nothing were quantized."""
    record, dtype = artifact.manifest.quantization, artifact.manifest.dtype
    if record is None:
        return 1.0
    stored = whole_pages(int(artifact.manifest.files[WEIGHTS]["size"]))
    parts = sum(
        whole_pages(record.part_size(name, part, dtype)) for name in record.tensors for part in record.parts(name)
    )
    whole = sum(whole_pages(math.prod(tensor.shape) * ITEM_SIZES[dtype]) for tensor in record.tensors.values())
    return (stored - parts + whole) / stored


def quantized_size(artifact: Artifact) -> int:
    """Return the bytes of all quantized weights, scales included."""
    record = artifact.manifest.quantization
    if record is None:
        return 0
    return sum(record.stored_size(name, artifact.manifest.dtype) for name in record.tensors)


def weight_types(artifact: Artifact) -> dict[str, int]:
    """Return the bytes of weights by type, such as ``float32`` or ``int4``; weights shared by graphs count once."""
    import onnx

    sizes: dict[tuple[str, int], tuple[str, int]] = {}
    for weight in (weight for stage in STAGES for weight in artifact.weights(stage)):
        kind = onnx.TensorProto.DataType.Name(weight.data_type).lower()
        sizes[weight.file, weight.offset] = ("float32" if kind == "float" else kind, weight.size)
    totals: Counter[str] = Counter()
    for kind, size in sizes.values():
        totals[kind] += size
    return dict(totals.most_common())


def parameters(artifact: Artifact) -> dict[str, int]:
    """Return the numbers of parameters: total, and active, which counts only the experts that one token uses."""
    manifest = artifact.manifest
    record = manifest.quantization
    quantized = {} if record is None else {name: tensor.shape for name, tensor in record.tensors.items()}
    parts = () if record is None else tuple(name + part for name in quantized for part in record.parts(name))
    read = [weight for stage in STAGES for weight in artifact.weights(stage) if weight.file == WEIGHTS]
    packed = {weight.offset for weight in read if weight.name in parts}  # a tied embedding reads them by another name
    sizes = {weight.name: math.prod(weight.shape) for weight in read if weight.offset not in packed}
    sizes |= {name: math.prod(shape) for name, shape in quantized.items()}
    graph, place = artifact.graph("decode").graph, EXPERT_MATMUL.place("W")
    kinds = (EXPERT_MATMUL.name, QUANTIZED_EXPERT_MATMUL.name)
    stacked = {node.input[place].removesuffix(PACKED) for node in graph.node if node.op_type in kinds}
    idle = 0
    for name in stacked & sizes.keys():
        layer = int(name.removeprefix("model.layers.").split(".")[0])
        count, chosen = manifest.config.experts_of(layer) or (1, 1)
        idle += sizes[name] * (count - chosen) // count
    return {"total": sum(sizes.values()), "active": sum(sizes.values()) - idle}


def memory_needed(artifact: Artifact, batch: int, context: int) -> dict[str, int]:
    """Return the bytes that a process needs to decode with onnxruntime, by what they are for.

    Weights count once, as both graphs map one file; packed copies are added. If the library of kernels multiplies by
    quantized weights, it makes one packed copy of these. Otherwise each graph makes its own: of all weights if the
    model is small, else of the quantized ones (copies of float matrices are not counted then). A growing cache exists
    twice while a token is computed, a static one once, and one of its layers twice while rows move into larger buffers.
    If cache and model differ in type, one layer's conversion to float32 counts, even if kernels read the stored type.
    """
    manifest = artifact.manifest
    layout = layout_of(manifest.layers)
    cache = batch * layout_bytes(layout, context)
    decoded = 0
    if manifest.cache_dtype != manifest.dtype:  # one layer at a time, in float32
        elements = [math.prod(t.batch_shape(batch, context)) for layer in layout for t in layer]
        decoded = 4 * _DECODED * max(elements)
    static = any(each.cache == "static" for each in manifest.each_form())
    moving = batch * max(layout_bytes((layer,), context) for layer in layout) if static else cache
    weights = int(manifest.files[WEIGHTS]["size"])
    kernels, quantized = describe_kernels(), quantized_size(artifact)
    once = quantized and kernels["auto"] == "library" and multiplies_in_blocks(Path(str(kernels["library"])))
    packed = quantized if once else 2 * (weights if weights <= PACK_LIMIT else quantized)
    heads = artifact.config.num_attention_heads + artifact.config.num_key_value_heads
    workspace = _SCORE_TENSORS * 4 * batch * context * heads + decoded  # scores of one layer in float32
    return {
        "batch": batch,
        "context": context,
        "weights": weights + packed,
        "cache_per_token": bytes_per_token(layout),
        "states": batch * sum(t.size(1) for layer in layout for t in layer if t.sort == "state"),
        "cache": cache,
        "cache_while_decoding": cache + moving,
        "workspace": workspace,
        "runtime": _RUNTIME,
        "total": weights + packed + cache + moving + workspace + _RUNTIME,
    }


def _graph(artifact: Artifact, stage: str) -> dict[str, Any]:
    info = artifact.manifest.graphs[stage]
    model = artifact.graph(stage)
    operators = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model.graph.node)
    if not all(isinstance(name, str) for name in operators):  # protobuf returns bytes for what is not UTF-8
        raise ValueError("the name of an operator is not text")
    return {
        "file": info.file,
        "inputs": msgspec.to_builtins(info.inputs),
        "outputs": msgspec.to_builtins(info.outputs),
        "operators": dict(operators.most_common()),
        "functions": {f"{fn.domain}::{fn.name}": len(fn.node) for fn in model.functions},
        "weights": len(artifact.weights(stage)),
    }
