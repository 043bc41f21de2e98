"""Write a folder for NVIDIA's tools: graphs for TensorRT, the plugin library, profiles, recorded inputs, scripts."""

from __future__ import annotations

import json
import shutil
import string
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lucid_deploy.artifact import STAGES, WEIGHTS, Artifact
from lucid_deploy.artifact.read import unchanged
from lucid_deploy.errors import LucidError, missing_package
from lucid_deploy.files import atomic_folders, atomic_write
from lucid_deploy.packaging.tensorrt.recorded import RUNNER, Recorded, record
from lucid_deploy.packaging.tensorrt.scripts import (
    Profiles,
    compare_script,
    polygraphy_script,
    resource,
    trtexec_script,
)
from lucid_deploy.plugins.hosts.tensorrt.build import LIBRARY_NAME, check_kernels, check_plugin
from lucid_deploy.runtimes.tensorrt.limits import Limits, choose_limits, profile_shapes
from lucid_deploy.runtimes.tensorrt.plugin_library import find_or_build
from lucid_deploy.runtimes.tensorrt.prepare import PLUGIN_OPERATORS, check_artifact, kernel_head_dims, prepare_graph
from lucid_deploy.version import __version__

if TYPE_CHECKING:
    import torch

PROFILES = "profiles.json"
FORMAT_VERSION = 1
_AS_THEY_ARE = ("run_polygraphy.py", "no_tf32.py", "data_loader.py", "build_tensorrt_rtx.py")
LEAST = "0.53.6"  # the oldest version of Polygraphy that was tried


@dataclass(frozen=True)
class TensorRtOptions:
    """Options of a package for TensorRT."""

    max_batch: int | None = None  # most rows; None: 4
    max_context: int | None = None  # most tokens of a row; None: the model's
    prefill_chunk: int | None = None  # most new tokens of one prefill; None: 2048, or less if the context is shorter
    # The plugin library; None: the one that lucid-deploy build would use, built if there is none.
    plugin: Path | None = None
    overwrite: bool = False  # whether an existing package may be replaced


def package_tensorrt(
    artifact: Artifact,
    output: str | Path,
    options: TensorRtOptions | None = None,
    announce: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> Path:
    """Write a package for TensorRT into a folder, which appears whole or not at all.

    Args:
        artifact: The opened artifact.
        output: The folder to make.
        options: See :class:`TensorRtOptions`.
        announce: Called with one line before a plugin library is built because there is none.
        progress: Called with (kernels done, kernels in all, name of the last) while that library is built.

    Returns:
        The folder.
    """
    options, output = options or TensorRtOptions(), Path(output)
    check_polygraphy()
    limits = _checked_limits(artifact, options)
    _check_output(output, options.overwrite)
    library = None
    if artifact.manifest.uses(PLUGIN_OPERATORS):
        dtype, head_dims = artifact.manifest.dtype, kernel_head_dims(artifact)
        library = options.plugin or find_or_build(dtype, head_dims, (), announce, progress)
        check_plugin(library)
        check_kernels(library, dtype, head_dims)
    # TensorRT has fused kernels for the operator Attention in half precision only.
    form = "explicit" if artifact.manifest.dtype == "float32" else "standard"
    with unchanged(artifact):
        graphs = {stage: stage_graphs(artifact, stage, form) for stage in STAGES}
        recorded = record(artifact, limits)
    try:
        with atomic_folders(output, overwrite=options.overwrite) as (folder,), unchanged(artifact):
            _fill(folder, artifact, output.name, limits, form, graphs, recorded, library)
    except OSError as error:
        raise LucidError(f"Writing {output} failed: {error.strerror or error}. Nothing was left behind.") from error
    return output


def _checked_limits(artifact: Artifact, options: TensorRtOptions) -> Limits:
    if artifact.manifest.adapters is not None:
        raise LucidError(
            f"{artifact.directory} has LoRA adapters, which the input adapter_ids selects for each batch row; this "
            "package has no such recorded input. Export with --merge-adapter, or build engines: lucid-deploy build."
        )
    if artifact.manifest.cache == "static":
        raise LucidError(
            f"{artifact.directory} has a static cache. TensorRT updates it only if input and output share memory, but "
            "trtexec and Polygraphy allocate them separately. Export without --cache, or build its engines with "
            "lucid-deploy build."
        )
    if artifact.manifest.cache_dtype == "fp8":
        raise LucidError(
            f"{artifact.directory} has a cache in fp8, which the arrays that Polygraphy records cannot hold. Export "
            "with --cache-dtype auto, or build its engines with lucid-deploy build."
        )
    check_artifact(artifact)
    return choose_limits(artifact, options.max_batch, options.max_context, options.prefill_chunk)


def _check_output(output: Path, overwrite: bool) -> None:
    if not output.exists():
        return
    if not overwrite:
        raise LucidError(f"{output} exists already. Choose another --output, or pass --overwrite to replace it.")
    if not (output / PROFILES).is_file():
        raise LucidError(
            f"{output} is not a package for TensorRT, so --overwrite does not replace it. Remove it yourself."
        )


def _fill(
    folder: Path,
    artifact: Artifact,
    name: str,
    limits: Limits,
    form: str,
    graphs: dict[str, StageGraphs],
    recorded: dict[str, Recorded],
    library: Path | None,
) -> None:
    shutil.copyfile(artifact.path(WEIGHTS), folder / WEIGHTS)  # not a link: ONNX's checker refuses links as unsafe
    for stage in STAGES:
        (folder / f"{stage}.onnx").write_bytes(graphs[stage].engine)
        (folder / f"{stage}.functions.onnx").write_bytes(graphs[stage].functions)
    for case, each in recorded.items():
        write_recorded(each, folder / f"{case}_inputs.json", folder / f"{case}_outputs.json")
    if library is not None:
        shutil.copyfile(library, folder / LIBRARY_NAME)
    profiles: Profiles = {stage: profile_shapes(artifact, stage, limits) for stage in STAGES}
    tolerances = {case: each.tolerances for case, each in recorded.items()}
    facts = _facts(artifact, limits, form, graphs, profiles, tolerances)
    (folder / PROFILES).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    plugin = LIBRARY_NAME if library is not None else None
    for file, text in (
        ("build.sh", trtexec_script(profiles, plugin, form == "standard")),
        ("build_polygraphy.sh", polygraphy_script(profiles)),
        ("compare.sh", compare_script(profiles, tolerances)),
    ):
        atomic_write(folder / file, text.encode(), mode=0o777)
    for file in _AS_THEY_ARE:
        (folder / file).write_text(resource(file), encoding="utf-8")
    (folder / "README.md").write_text(_readme(artifact, name, limits, form, tolerances), encoding="utf-8")


def _facts(
    artifact: Artifact,
    limits: Limits,
    form: str,
    graphs: dict[str, StageGraphs],
    profiles: Profiles,
    tolerances: dict[str, dict[str, float]],
) -> dict[str, object]:
    """Return what ``profiles.json`` says: the graphs, their ranges of shapes, and how exact an engine must be."""
    return {
        "format_version": FORMAT_VERSION,
        "toolkit_version": __version__,
        "dtype": artifact.manifest.dtype,
        "attention": form,
        "limits": asdict(limits),
        "plugin_nodes": {stage: each.plugin_nodes for stage, each in graphs.items()},
        "profiles": {
            stage: {name: dict(zip(("min", "opt", "max"), of, strict=True)) for name, of in profile.items()}
            for stage, profile in profiles.items()
        },
        "absolute_tolerances": tolerances,
    }


def _readme(artifact: Artifact, name: str, limits: Limits, form: str, tolerances: dict[str, dict[str, float]]) -> str:
    config = artifact.config
    size = 2 if form == "standard" and artifact.manifest.dtype != "float32" else 4
    tokens = limits.max_context - 1 + limits.prefill_chunk
    scores = limits.max_batch * config.num_attention_heads * limits.prefill_chunk * tokens * size / 2**20
    memory = f"A layer's attention scores take up to {scores:,.0f} MiB in prefill where attention is not fused."
    return string.Template(resource("README.md")).substitute(
        name=name,
        version=__version__,
        layers=f"{config.num_hidden_layers} layers ({', '.join(dict.fromkeys(config.kinds))})",
        dtype=artifact.manifest.dtype,
        batch=limits.max_batch,
        context=limits.max_context,
        chunk=limits.prefill_chunk,
        attention="two matrix multiplications and a softmax" if form == "explicit" else "the operator `Attention`",
        memory=memory,
        largest=f"{max(tolerances['decode'].values()):.3g}",
    )


@dataclass(frozen=True)
class StageGraphs:
    """The graphs of a stage, serialised; their weights lie in ``weights.bin`` beside them."""

    engine: bytes  # for TensorRT: plugin nodes without bodies, no loop
    functions: bytes  # for onnxruntime: with function bodies, attention explicit; TensorRT with the plugin reads it too
    plugin_nodes: dict[str, int]  # how many nodes of each of the plugin's operators there are


def stage_graphs(artifact: Artifact, stage: str, form: str) -> StageGraphs:
    """Make both graphs of a stage; ``form`` is the form of attention in the graph for TensorRT."""
    import onnx
    import onnx_ir as ir

    from lucid_deploy.runtimes.tensorrt.passes.attention_forms import (
        decomposable_attention,
        explicit_attention,
        standard_attention,
    )
    from lucid_deploy.runtimes.tensorrt.passes.plugin_nodes import name_plugins, strip_bodies

    prepared = prepare_graph(artifact, stage, artifact.config.max_position_embeddings)
    functions = ir.serde.deserialize_model(artifact.graph(stage))
    # Explicit in any form: TensorRT decomposes Attention only with an attribute that onnxruntime refuses.
    standard_attention(functions)
    try:
        explicit_attention(functions)
    except ValueError as error:
        raise LucidError(f"{artifact.graph_path(stage)} cannot be packaged for TensorRT: {error}.") from error
    name_plugins(functions)
    with_bodies = ir.serde.serialize_model(functions).SerializeToString()
    if form == "explicit":
        engine = functions
        strip_bodies(engine)
    else:
        engine = ir.serde.deserialize_model(onnx.load_from_string(prepared.model))
        decomposable_attention(engine)
        name_plugins(engine)
    return StageGraphs(ir.serde.serialize_model(engine).SerializeToString(), with_bodies, prepared.plugin_nodes)


def check_polygraphy() -> None:
    """Check that Polygraphy is installed, which writes the recorded inputs and outputs in its own format."""
    try:
        import polygraphy  # noqa: F401 (whether it is there)
    except ImportError as error:
        raise missing_package("polygraphy", f"polygraphy>={LEAST},<1", "package for TensorRT") from error


def write_recorded(recorded: Recorded, inputs: Path, outputs: Path) -> None:
    """Write the inputs and the golden outputs of a case to two files in Polygraphy's format."""
    from polygraphy.comparator import RunResults
    from polygraphy.json import save_json
    from polygraphy.logger import G_LOGGER

    with G_LOGGER.verbosity(G_LOGGER.ERROR):
        save_json([_arrays(recorded.inputs)], str(inputs), "recorded inputs")
        results = RunResults()
        results.add([_arrays(recorded.outputs)], runtime=0.0, runner_name=RUNNER)
        results.save(str(outputs))


def _arrays(call: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return tensors as numpy arrays; those in bfloat16, which numpy lacks, stay tensors: Polygraphy accepts both."""
    import torch

    return {name: x if x.dtype == torch.bfloat16 else x.numpy() for name, x in call.items()}
