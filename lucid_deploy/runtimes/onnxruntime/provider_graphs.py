"""What onnxruntime's TensorRT providers need beside a graph: a copy they can read, profiles, and folders for caches.

All of it lies in ``engines/onnxruntime-PROVIDER/KEY`` of the artifact; the key is a hash of graphs, weights and plugin
library, since onnxruntime names its engine caches by graph alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from lucid_deploy.artifact import WEIGHTS, Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.tensorrt.limits import Limits, profile_shapes
from lucid_deploy.runtimes.tensorrt.manifest import FOLDER, file_facts, source_hashes
from lucid_deploy.runtimes.tensorrt.prepare import prepare_graph


def provider_folder(artifact: Artifact, provider: str, library: Path | None = None) -> Path:
    """Return the folder of a provider's files, made if it is not there.

    Args:
        artifact: The artifact.
        provider: ``tensorrt`` or ``nv-tensorrt-rtx``.
        library: The plugin library, if the provider uses it.

    Raises:
        LucidError: The artifact's directory cannot be written.
    """
    facts = {**source_hashes(artifact), "plugin": file_facts(library)["sha256"] if library is not None else None}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    folder = artifact.directory / FOLDER / f"onnxruntime-{provider}" / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def plugin_graph(artifact: Artifact, stage: str, limits: Limits, folder: Path) -> Path:
    """Write the copy of a stage's graph in which TensorRT finds our plugins; a copy that is there is replaced.

    Left as it is, the graph's functions are inlined before a provider sees them, loops included. The weight file is
    linked beside the copy: onnxruntime and TensorRT read external data from the folder of the graph only.

    Args:
        artifact: The artifact, with a growing cache.
        stage: ``prefill`` or ``decode``.
        limits: The largest sizes that will be run.
        folder: From :func:`provider_folder`.

    Returns:
        The copy.

    Raises:
        LucidError: The graph lacks the custom operators, or the folder cannot be written.
    """
    graph = prepare_graph(artifact, stage, limits.max_context, for_onnxruntime=True)
    path = folder / f"{stage}.onnx"
    try:
        with tempfile.TemporaryDirectory(prefix=".lucid-", dir=folder) as scratch:
            made = Path(scratch, path.name)
            made.write_bytes(graph.model)
            os.replace(made, path)
            if not _is_own_file(folder / WEIGHTS):
                made = Path(scratch, WEIGHTS)
                shutil.copyfile(artifact.path(WEIGHTS), made)
                os.replace(made, folder / WEIGHTS)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return path


def _is_own_file(path: Path) -> bool:
    """Whether weights are there under this name alone: ONNX refuses external data with several links, or behind one."""
    return path.is_file() and not path.is_symlink() and path.stat().st_nlink == 1


def _unwritable(folder: Path, error: OSError) -> LucidError:
    return LucidError(
        f"onnxruntime's TensorRT providers keep graphs and engines in {folder}, which cannot be written "
        f"({error.strerror or error}). Copy the artifact to where you may write, or run with --provider cuda."
    )


def profile_options(artifact: Artifact, stage: str, limits: Limits, prefix: str) -> dict[str, str]:
    """Return the optimization profile of a stage as provider options, ``name:1x4x0x64,…`` for all dynamic inputs.

    Args:
        artifact: The artifact.
        stage: ``prefill`` or ``decode``.
        limits: As for ``lucid-deploy build``.
        prefix: Of the options' names: ``trt`` or ``nv``.
    """
    shapes = profile_shapes(artifact, stage, limits)
    return {
        f"{prefix}_profile_{which}_shapes": ",".join(
            f"{name}:{'x'.join(map(str, ranges[index]))}" for name, ranges in shapes.items()
        )
        for index, which in enumerate(("min", "opt", "max"))
    }
