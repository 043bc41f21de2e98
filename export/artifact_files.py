"""Write the files of an artifact: graphs, weights, tokenizer and manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lucid_deploy.artifact import (
    ADAPTERS,
    CACHES,
    MANIFEST,
    STAGES,
    WEIGHTS,
    GraphForm,
    GraphInfo,
    Manifest,
)
from lucid_deploy.artifact.manifest import FileFacts, form_name
from lucid_deploy.export.companions import copy_companions
from lucid_deploy.export.options import ExportOptions
from lucid_deploy.model.description import describe
from lucid_deploy.plugins.table import EXPERT_MATMUL, QUANTIZED_EXPERT_MATMUL
from lucid_deploy.version import __version__

if TYPE_CHECKING:
    from lucid_deploy.artifact.quantization import Quantization
    from lucid_deploy.export.adapters import AdapterPlan
    from lucid_deploy.export.quantize.method import LearnedWeights, Progress
    from lucid_deploy.export.trace import Traced
    from lucid_deploy.export.weights import StoredTensor
    from lucid_deploy.model.checkpoint import Checkpoint
    from lucid_deploy.model.description import LayerDescription


@dataclass(frozen=True)
class ArtifactContents:
    """Everything that decides the content of an artifact."""

    source: Checkpoint
    name: str  # what the caller called the checkpoint
    options: ExportOptions
    quantization: Quantization | None  # what is quantized, and how; None: nothing
    hub: dict[str, str | None] | None  # where the checkpoint was downloaded from; None: it is local
    notes: tuple[str, ...]  # sentences for the manifest, beside the checkpoint's own
    learned: LearnedWeights  # what was learned, and the scales that are folded into the weights of source
    adapters: AdapterPlan | None  # adapters that are kept apart, and room for later ones; None: none

    @property
    def layers(self) -> tuple[LayerDescription, ...]:
        """The layers' descriptions, as if nothing were quantized or inlined."""
        return describe(self.source.config, self.options.stored_cache_dtype)

    @property
    def float32_head(self) -> bool:
        """Whether the head is not quantized; then it computes in float32, whatever the model's type."""
        return self.quantization is None or not self.quantization.pieces(self.source.stored_name("lm_head.weight"))


def write_artifact(building: Path, contents: ArtifactContents, progress: Progress) -> None:
    """Fill a directory with the artifact's files."""
    from lucid_deploy.artifact.quantized_bytes import write_scales
    from lucid_deploy.export import genai
    from lucid_deploy.export.adapters import plan_file, write_new
    from lucid_deploy.export.trace import trace_caches
    from lucid_deploy.export.weights import plan_weights, write_weights

    options, learned = contents.options, contents.learned
    traced, left_out = trace_caches(contents, progress)
    transposed = {frozenset(graph.transposed) for stages in traced.values() for graph in stages.values()}
    assert len(transposed) == 1, "all graphs must read the shared weights in one layout"
    plan = plan_weights(contents.source.stored_shapes(), set(*transposed), options.dtype, contents.quantization)
    digest = write_weights(
        building / WEIGHTS,
        plan,
        contents.source,
        contents.quantization,
        lambda done, total: progress("Writing weights", done, total),
        learned.parts,
    )
    write_scales(building, learned.folded)
    stacked = {} if contents.adapters is None else plan_file(contents.adapters, options.dtype)
    slots = None
    if contents.adapters is not None:
        slots = write_new(building, contents.adapters, stacked, options.dtype, learned.folded)
    forms = _write_graphs(building, options, traced, plan, stacked)
    notes = copy_companions(contents.source.directory, building)
    manifest = dataclasses.replace(_manifest(contents, forms, left_out, set(*transposed), notes), adapters=slots)
    if genai.is_supported(manifest):
        settings = genai.genai_config(manifest, building)
        (building / genai.FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    manifest = dataclasses.replace(manifest, files=_file_facts(building, {WEIGHTS: digest}))
    (building / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


def _write_graphs(
    building: Path,
    options: ExportOptions,
    traced: dict[str, dict[str, Traced]],
    plan: dict[str, StoredTensor],
    stacked: dict[str, StoredTensor],
) -> list[GraphForm]:
    """Write every form's graphs (a form: kind of cache, inlined or not); return the forms. The first has plain names.

    Inlined graphs come last, since inlining changes graphs in place that are also written with functions.
    """
    from lucid_deploy.export.graph_file import write_graph

    kinds = [(cache, options.inline) for cache in traced]
    if options.every_form:
        kinds.append((CACHES[0], True))
    forms: list[GraphForm] = []
    for cache, inline in kinds:
        suffix = f"_{form_name(cache, inline)}" if forms else ""
        graphs = {}
        for stage, graph in traced[cache].items():
            file = f"{stage}{suffix}.onnx"
            write_graph(building / file, graph.model, plan, inline, stacked)
            graphs[stage] = GraphInfo(file, graph.inputs, graph.outputs)
        if STAGES[0] not in graphs:  # the first form's prefill graph serves: it reads no static cache
            graphs = {STAGES[0]: forms[0].graphs[STAGES[0]], **graphs}
        forms.append(GraphForm(cache, inline, options.opset_for(cache), graphs))
    return forms


def _manifest(
    contents: ArtifactContents,
    forms: list[GraphForm],
    left_out: dict[str, str],
    transposed: set[str],
    notes: tuple[str, ...],
) -> Manifest:
    """Return the manifest without the files' sizes and hashes, and without the record of adapters."""
    from lucid_deploy.model.checkpoint import DEMO
    from lucid_deploy.plugins.table import VERSION

    source, options, quantization = contents.source, contents.options, contents.quantization
    first, *others = forms
    return Manifest(
        config=source.config,
        dtype=options.dtype,
        cache=first.cache,
        logits=options.logits,
        opset=first.opset,
        operators=VERSION,
        source=DEMO if contents.name == DEMO else str(source.directory.resolve()),
        versions=_versions(source),
        graphs=first.graphs,
        files={},
        cache_dtype=options.stored_cache_dtype,
        quantization=quantization,
        layers=_described(contents),
        transposed=tuple(sorted(transposed - set(() if quantization is None else quantization.tensors))),
        float32_head=contents.float32_head,
        notes=(*source.notes, *contents.notes, *notes),
        assumed_unused=source.assumed_unused,
        hub=contents.hub,
        options=options.recorded(),
        inline=first.inline,
        forms=tuple(others),
        forms_left_out=left_out,
        adapter=None if source.adapter is None else str(source.adapter.directory.resolve()),
    )


def _described(contents: ArtifactContents) -> tuple[LayerDescription, ...]:
    """Describe the layers as exported: quantized experts have another operator, and inlined graphs none of ours."""
    if contents.options.inline:
        return tuple(dataclasses.replace(layer, operators={}) for layer in contents.layers)
    tensors = {} if contents.quantization is None else contents.quantization.tensors
    experts = {name.split(".")[2] for name, tensor in tensors.items() if tensor.experts}
    return tuple(_quantized_experts(layer) if str(i) in experts else layer for i, layer in enumerate(contents.layers))


def _quantized_experts(layer: LayerDescription) -> LayerDescription:
    changed = {EXPERT_MATMUL.name: QUANTIZED_EXPERT_MATMUL.name}
    return dataclasses.replace(
        layer, operators={stage: tuple(changed.get(n, n) for n in names) for stage, names in layer.operators.items()}
    )


def _file_facts(directory: Path, known: dict[str, str]) -> dict[str, FileFacts]:
    return {
        path.relative_to(directory).as_posix(): {
            "size": path.stat().st_size,
            "sha256": known.get(path.name) or hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != ADAPTERS  # it changes after the export, and holds its own hash
    }


def _versions(source: Checkpoint) -> dict[str, str]:
    packages = ("torch", "onnx", "onnxscript", "onnx-ir", *(("transformers",) if source.config.class_config else ()))
    return {"lucid-deploy": __version__, **{name: importlib.metadata.version(name) for name in packages}}
