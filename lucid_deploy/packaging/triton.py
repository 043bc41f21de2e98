"""A model repository for NVIDIA Triton Inference Server: one model for prefill, one for decode.

The layout follows Triton's documentation (model repository, model configuration); tests check it against its protobuf
schema. Both models are stateless: the cache is among their inputs and outputs, with the artifact's names and shapes, so
a client passes it from call to call. ``max_batch_size`` is 0, so Triton does not batch requests: every tensor has its
batch axis already, and caches of different lengths cannot be stacked.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from lucid_deploy.artifact import ADAPTERS, STAGES, WEIGHTS, Artifact, TensorInfo
from lucid_deploy.artifact.read import unchanged
from lucid_deploy.errors import LucidError
from lucid_deploy.files import atomic_folders, atomic_write
from lucid_deploy.runtimes.options import MOST_THREADS
from lucid_deploy.runtimes.tensorrt.manifest import EngineManifest, engine_directory, open_engines

START = "start-triton.sh"
_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "int64": "TYPE_INT64",
    "int8": "TYPE_INT8",
    "uint8": "TYPE_UINT8",
}
_FILE = {"onnxruntime": "model.onnx", "tensorrt": "model.plan"}


@dataclass(frozen=True)
class TritonOptions:
    """Options of a model repository."""

    name: str | None = None  # the models are NAME-prefill and NAME-decode; None: named as the artifact's directory
    # onnxruntime (the graphs) or tensorrt (engines that lucid-deploy build made with TensorRT).
    backend: str = "onnxruntime"
    device: str = "cpu"  # cpu or gpu, where instances run; the tensorrt backend knows the GPU only
    instances: int = 1  # copies of each model that run at once on each device
    # Threads of each copy, for the onnxruntime backend on the CPU; None: as many as the server has cores.
    threads: int | None = None
    overwrite: bool = False  # whether models of these names in the repository may be replaced


def package_triton(artifact: Artifact, output: str | Path, options: TritonOptions | None = None) -> list[Path]:
    """Write the models into a repository; neither appears before both are complete.

    Args:
        artifact: The opened artifact.
        output: The repository; other models in it are left alone.
        options: See :class:`TritonOptions`.

    Returns:
        The models' directories, and for the tensorrt backend a script that starts the server, with the plugin if any.
    """
    options = options or TritonOptions()
    name = options.name if options.name is not None else artifact.directory.resolve().name
    output = Path(output)
    _check(artifact, name, options)
    engines = _tensorrt_engines(artifact) if options.backend == "tensorrt" else None
    targets = {stage: output / f"{name}-{stage}" for stage in STAGES}
    for target in targets.values():
        if target.exists() and not options.overwrite:
            raise LucidError(f"{target} exists already. Choose another --name, or pass --overwrite to replace it.")
        if target.exists() and not (target / "config.pbtxt").is_file():
            raise LucidError(f"{target} is not a Triton model, so --overwrite does not replace it. Remove it yourself.")
    if output.exists() and not output.is_dir():
        raise LucidError(f"{output} is a file; a model repository is a directory. Choose another --output.")
    try:
        with atomic_folders(*targets.values(), overwrite=options.overwrite) as folders, unchanged(artifact):
            for stage, folder in zip(targets, folders, strict=True):
                _fill(folder, artifact, stage, name, options, engines)
        script = [_write_start_script(output, name, engines)] if engines is not None else []
    except OSError as error:
        raise LucidError(f"Writing {output} failed: {error.strerror or error}.") from error
    return [*targets.values(), *script]


def model_config(artifact: Artifact, stage: str, name: str, options: TritonOptions, plugin: str | None = None) -> str:
    """Return the text of a model's ``config.pbtxt``, a ``ModelConfig`` of Triton's ``model_config.proto``."""
    graph = artifact.manifest.graphs[stage]
    kind = "KIND_CPU" if options.device == "cpu" else "KIND_GPU"
    parts = [
        f"name: {_quoted(f'{name}-{stage}')}",
        f'backend: "{options.backend}"',
        f'default_model_filename: "{_FILE[options.backend]}"',
        "max_batch_size: 0",
        *(_tensor("input", info) for info in graph.inputs),
        *(_tensor("output", info) for info in graph.outputs),
        f"instance_group [ {{ count: {options.instances} kind: {kind} }} ]",
        _parameter("lucid_deploy.layers", "+".join(dict.fromkeys(artifact.config.kinds))),
        _parameter("lucid_deploy.stage", stage),
    ]
    if options.threads is not None:
        parts.append(_parameter("intra_op_thread_count", str(options.threads)))
    if plugin is not None:
        parts.append(_parameter("lucid_deploy.tensorrt_plugin", plugin))
    return "\n".join(parts) + "\n"


def _check(artifact: Artifact, name: str, options: TritonOptions) -> None:
    if options.threads is not None and not 1 <= options.threads <= MOST_THREADS:
        raise LucidError(f"The number of threads must be 1 to {MOST_THREADS}, not {options.threads}.")
    if options.threads is not None and options.device != "cpu":
        raise LucidError("The number of threads is for models on the CPU. Leave it out, or pass --device cpu.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise LucidError(
            f"{name!r} cannot name a model: use letters, digits, '.', '_' and '-', a letter or a digit first. "
            "Choose one with --name."
        )
    if options.backend == "tensorrt" and options.device == "cpu":
        raise LucidError("Triton's tensorrt backend runs on a GPU: pass --device gpu.")
    if options.backend == "onnxruntime" and artifact.manifest.cache == "static":
        raise LucidError(
            f"{artifact.directory} has a static cache, which decoding writes in place; a client would have to send "
            "Triton the whole buffers with every token. Export without --cache."
        )
    if artifact.manifest.cache_dtype == "fp8":
        raise LucidError(
            f"{artifact.directory} has a cache in fp8, and Triton's tensors have no such type. Export with "
            "--cache-dtype auto or int8."
        )
    if options.device == "cpu" and artifact.manifest.dtype == "bfloat16":
        raise LucidError("onnxruntime has no CPU kernels for bfloat16: pass --device gpu, or export as float32.")


def _tensorrt_engines(artifact: Artifact) -> EngineManifest:
    """Return the manifest of the engines that TensorRT built; Triton cannot load those of TensorRT-RTX."""
    folder = engine_directory(artifact, "tensorrt")
    if not folder.is_dir() and engine_directory(artifact, "tensorrt-rtx").is_dir():
        raise LucidError(
            f"{artifact.directory} has engines of TensorRT-RTX, which Triton's tensorrt backend does not read. "
            f"Build them with TensorRT: lucid-deploy build {artifact.directory} --backend tensorrt"
        )
    try:
        version = json.loads((folder / "engines.json").read_text(encoding="utf-8"))["backend_version"]
    except (OSError, ValueError, KeyError, TypeError):
        version = ""  # open_engines says what is wrong
    manifest = open_engines(artifact, "tensorrt", str(version))
    if manifest.weightless:
        raise LucidError(
            f"The engines of {artifact.directory} were built with --weightless and get their weights when they are "
            "loaded, which Triton does not do. Build them without that option."
        )
    return manifest


def _fill(
    folder: Path, artifact: Artifact, stage: str, name: str, options: TritonOptions, engines: EngineManifest | None
) -> None:
    version = folder / "1"
    version.mkdir()
    if engines is None:
        shutil.copyfile(artifact.graph_path(stage), version / "model.onnx")
        for file in (WEIGHTS,) if artifact.manifest.adapters is None else (WEIGHTS, ADAPTERS):
            shutil.copyfile(artifact.path(file), version / file)  # ONNX refuses external data with several hard links
        plugin = None
    else:
        built = engine_directory(artifact, engines.backend)
        shutil.copyfile(built / engines.engines[stage].file, version / "model.plan")
        plugin = None
        if engines.plugin is not None:
            (folder / "plugin").mkdir()
            shutil.copyfile(built / engines.plugin.file, folder / "plugin" / engines.plugin.file)
            plugin = f"{name}-{stage}/plugin/{engines.plugin.file}"
    text = model_config(artifact, stage, name, options, plugin)
    (folder / "config.pbtxt").write_text(text, encoding="utf-8")


def _write_start_script(output: Path, name: str, engines: EngineManifest) -> Path:
    """Write a script that starts Triton, which takes TensorRT plugins on its command line only; return its path."""
    path = output / START
    lines = ["#!/bin/sh", "# Starts Triton with the plugin library that the TensorRT engines need."]
    lines.append('repository=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)')
    command = 'exec tritonserver --model-repository="$repository"'
    if engines.plugin is not None:
        plugin = f'"$repository/{name}-prefill/plugin/{engines.plugin.file}"'
        command += f" --backend-config=tensorrt,plugins={plugin}"
    atomic_write(path, ("\n".join([*lines, command + ' "$@"']) + "\n").encode(), mode=0o777)
    return path


def _tensor(kind: str, info: TensorInfo) -> str:
    dims = ", ".join(str(size) if isinstance(size, int) else "-1" for size in info.shape)
    return f"{kind} [ {{ name: {_quoted(info.name)} data_type: {_TYPES[info.dtype]} dims: [ {dims} ] }} ]"


def _parameter(key: str, value: str) -> str:
    return f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=True)
