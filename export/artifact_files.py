"""Write the files of an artifact: graphs, weights, tokenizer and manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lucid_deploy.artifact import ADAPTERS, MANIFEST, STAGES, VERIFY, WEIGHTS, GraphInfo, Manifest
from lucid_deploy.cache.storage import resolve_cache_dtype
from lucid_deploy.export.companions import copy_companions
from lucid_deploy.export.options import ExportOptions
from lucid_deploy.model.description import describe, drafts_unsupported_reason
from lucid_deploy.plugins.table import EXPERT_MATMUL, QUANTIZED_EXPERT_MATMUL
from lucid_deploy.version import __version__

if TYPE_CHECKING:
    from lucid_deploy.artifact.quantization import Quantization, QuantizedTensor
    from lucid_deploy.export.adapters import AdapterPlan
    from lucid_deploy.export.quantize.method import LearnedWeights
    from lucid_deploy.export.trace import Traced
    from lucid_deploy.model.checkpoint import Checkpoint
    from lucid_deploy.model.description import LayerDescription

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ArtifactContents:
    """Everything that decides the content of an artifact."""

    source: Checkpoint
    name: str  # what it was called
    options: ExportOptions
    ranges: dict[str, Any] | None = None  # what the manifest says of the range scan; None where nothing is float16
    quantization: Quantization | None = None  # what is quantized, and how; None: nothing
    hub: dict[str, str] | None = None  # where the checkpoint was downloaded from; None: it was here
    notes: tuple[str, ...] = ()  # sentences for the manifest, beside the checkpoint's own
    learned: LearnedWeights | None = None  # numbers and scales that were learned; None: none were
    adapters: AdapterPlan | None = None  # adapters that are kept apart, and room for later ones; None: none

    @property
    def float32_head(self) -> bool:
        """Whether the logits are computed by a float32 product."""
        return has_float32_head(self.source, self.quantization)


def has_float32_head(source: Checkpoint, quantization: Quantization | None) -> bool:
    """Whether the head is not quantized, so that its product is computed in float32 whatever the model's type."""
    return quantization is None or source.stored_name("lm_head.weight") not in quantization.tensors


def write_artifact(building: Path, contents: ArtifactContents, progress: Progress) -> None:
    """Fill a directory with the artifact's files."""
    from lucid_deploy.artifact.quantized_bytes import write_scales
    from lucid_deploy.export import genai
    from lucid_deploy.export.adapters import plan_file, write_new
    from lucid_deploy.export.companions import settings_note
    from lucid_deploy.export.graph_file import write_graph
    from lucid_deploy.export.quantize.folds import with_scales
    from lucid_deploy.export.weights import plan_weights, write_weights

    options, learned = contents.options, contents.learned
    folded = {} if learned is None else learned.folded
    traced = _trace_stages(contents, progress)
    transposed = {frozenset(graph.transposed) for graph in traced.values()}
    assert len(transposed) == 1, "all graphs must read the shared weights in one layout"
    plan = plan_weights(contents.source.stored_shapes(), set(*transposed), options.dtype, contents.quantization)
    digest = write_weights(
        building / WEIGHTS,
        plan,
        with_scales(contents.source, folded),
        contents.quantization,
        lambda done, total: progress("Writing weights", done, total),
        None if learned is None else learned.parts,
    )
    write_scales(building, folded)
    stacked = {} if contents.adapters is None else plan_file(contents.adapters, options.dtype)
    slots = None
    if contents.adapters is not None:
        slots = write_new(building, contents.adapters, stacked, options.dtype, folded)
    graphs = {}
    for stage, graph in traced.items():
        file = f"{stage}.onnx"
        write_graph(building / file, graph.model, plan, options.inline, stacked)
        graphs[stage] = GraphInfo(file, graph.inputs, graph.outputs)
    notes = (*copy_companions(contents.source.directory, building), *settings_note(building))
    manifest = dataclasses.replace(_manifest(contents, graphs, set(*transposed), notes), adapters=slots)
    if genai.is_supported(manifest):
        settings = genai.genai_config(manifest, building)
        (building / genai.FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    manifest = dataclasses.replace(manifest, files=_file_facts(building, {WEIGHTS: digest}))
    (building / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


def _trace_stages(contents: ArtifactContents, progress: Progress) -> dict[str, Traced]:
    """Trace all stages; let the graphs read quantized weights if there are any."""
    from lucid_deploy.export.graph_file import other_names
    from lucid_deploy.export.passes import quantize_weights
    from lucid_deploy.export.trace import trace

    source, options = contents.source, contents.options
    traced: dict[str, Traced] = {}
    stages = _stages(source, options)
    for step, stage in enumerate(stages):
        progress(f"Tracing {stage}", step, len(stages))
        traced[stage] = trace(
            source.config,
            stage,
            options.dtype,
            options.logits,
            options.cache,
            options.cache_dtype,
            float32_head=contents.float32_head,
            opset=options.opset,
            slots=None if contents.adapters is None else contents.adapters.slots,
        )
    progress("Tracing", len(stages), len(stages))
    if contents.quantization is not None:
        for graph in traced.values():
            names = other_names(graph.model, source.stored_shapes())
            quantize_weights(graph.model, contents.quantization, names)
    return traced


def _stages(source: Checkpoint, options: ExportOptions) -> tuple[str, ...]:
    """Return the stages to export; ``verify`` only if rejected draft tokens can be removed from the cache."""
    from lucid_deploy.export.operators import OPSET_STATIC, opset_of

    opset = options.opset or opset_of(options.cache)
    writes_rows = options.cache != "static" or opset >= OPSET_STATIC  # else only one row a step
    reason = drafts_unsupported_reason(describe(source.config, resolve_cache_dtype(options.cache_dtype, options.dtype)))
    return (*STAGES, VERIFY) if writes_rows and reason is None else STAGES


def _manifest(
    contents: ArtifactContents, graphs: dict[str, GraphInfo], transposed: set[str], notes: tuple[str, ...]
) -> Manifest:
    """Return the manifest without the files' sizes and hashes."""
    from lucid_deploy.export.operators import opset_of
    from lucid_deploy.model.checkpoint import DEMO
    from lucid_deploy.plugins.table import VERSION

    source, options, quantization = contents.source, contents.options, contents.quantization
    return Manifest(
        config=source.config,
        dtype=options.dtype,
        cache=options.cache,
        logits=options.logits,
        opset=options.opset or opset_of(options.cache),
        operators=VERSION,
        source=DEMO if contents.name == DEMO else str(source.directory.resolve()),
        versions=_versions(source),
        graphs=graphs,
        files={},
        cache_dtype=resolve_cache_dtype(options.cache_dtype, options.dtype),
        ranges=contents.ranges,
        quantization=quantization,
        layers=_described(source, options, {} if quantization is None else quantization.tensors),
        transposed=tuple(sorted(transposed - set(() if quantization is None else quantization.tensors))),
        float32_head=contents.float32_head,
        notes=(*source.notes, *contents.notes, *notes),
        assumed_unused=source.assumed_unused,
        hub=contents.hub,
        options=options.recorded(),
        inline=options.inline,
        adapter=None if source.adapter is None else str(source.adapter.directory.resolve()),
    )


def _described(
    source: Checkpoint, options: ExportOptions, tensors: dict[str, QuantizedTensor]
) -> tuple[LayerDescription, ...]:
    """Describe the layers, given what is quantized; those of inlined graphs use no operators of ours."""
    layers = describe(source.config, resolve_cache_dtype(options.cache_dtype, options.dtype))
    if options.inline:
        return tuple(dataclasses.replace(layer, operators={}) for layer in layers)
    experts = {name.split(".")[2] for name, tensor in tensors.items() if tensor.experts}
    return tuple(_quantized(layer) if str(index) in experts else layer for index, layer in enumerate(layers))


def _quantized(layer: LayerDescription) -> LayerDescription:
    changed = {EXPERT_MATMUL.name: QUANTIZED_EXPERT_MATMUL.name}
    return dataclasses.replace(
        layer, operators={stage: tuple(changed.get(n, n) for n in names) for stage, names in layer.operators.items()}
    )


def _file_facts(directory: Path, known: dict[str, str]) -> dict[str, dict[str, object]]:
    return {
        path.relative_to(directory).as_posix(): {
            "size": path.stat().st_size,
            "sha256": known.get(path.name) or hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != ADAPTERS  # it is changed alone, and has a hash of its own
    }


def _versions(source: Checkpoint) -> dict[str, str]:
    packages = ("torch", "onnx", "onnxscript", "onnx-ir", *(("transformers",) if source.config.class_config else ()))
    return {"lucid-deploy": __version__, **{name: importlib.metadata.version(name) for name in packages}}
