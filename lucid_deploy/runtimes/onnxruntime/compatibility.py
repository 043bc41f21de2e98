"""Check onnxruntime's version, and choose the library of kernels for this processor."""

from __future__ import annotations

import re
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError

# Attention of 1.23.0 pairs grouped heads wrongly: errors are as large as the logits. Older versions lack opset 23.
_FIRST = (1, 23, 1)
_STATIC = (1, 25)  # the first version that has TensorScatter, which writes rows into a static cache
_FLOAT8 = (1, 24)  # the oldest tested version whose Python API returns FP8 tensors to NumPy; 1.23.2 was not tested
_MULTIPLIES = ("avx512", "avx2")  # kernels that multiply float weights fast; times in docs/performance.md


def has_tensor_scatter() -> bool:
    """Whether the installed onnxruntime has TensorScatter, by its version, without importing it; True if unknown."""
    for package in ("onnxruntime", "onnxruntime-gpu"):
        with suppress(PackageNotFoundError):
            return _numbers(version(package)) >= _STATIC
    return True


def check_version(version: str, artifact: Artifact) -> None:
    """Raise a LucidError for a version of onnxruntime that computes the artifact's graphs wrongly or not at all."""
    if _numbers(version) < _FIRST:
        raise LucidError(
            f"onnxruntime {version} computes graphs wrongly or not at all. Install another version: pip install "
            '"onnxruntime>=1.23.1"'
        )
    if _numbers(version) < _STATIC and artifact.writes_in_place:
        raise LucidError(
            f"onnxruntime {version} cannot write into the static cache of {artifact.directory}: it has no operator "
            'TensorScatter. Install another version, pip install "onnxruntime>=1.25", or export with --opset 23 or '
            "--cache growing."
        )
    if _numbers(version) < _FLOAT8 and artifact.manifest.cache_dtype == "fp8":
        raise LucidError(
            f"onnxruntime {version} cannot read back the FP8 cache of {artifact.directory}. Install another version, "
            'pip install "onnxruntime>=1.24", or export with another --cache-dtype.'
        )


def _numbers(version: str) -> tuple[int, ...]:
    """Return the first three numbers of a version; custom builds append words to them."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def choose_kernels(kernels: str, provider: str | None = "cpu", inline: bool = False) -> Path | None:
    """Return the library of kernels to register with a session; None if the graph runs without one.

    The graph may keep its functions: onnxruntime prefers a registered operator to a function of the same name.
    """
    if provider != "cpu":
        if kernels == "library":
            raise LucidError("--kernels library is for onnxruntime on the CPU; leave it out here.")
        return None
    if inline and kernels == "library":
        raise LucidError(
            "--kernels library computes operators that graphs of export --inline do not have. Leave it out, or export "
            "without --inline."
        )
    if inline or kernels == "functions":
        return None
    from lucid_deploy.plugins.hosts.onnxruntime.build import check_ort_library, default_ort_library

    library = default_ort_library()
    if kernels == "auto" and not library.is_file():
        return None
    check_ort_library(library)
    return library


def multiplies(library: Path | None) -> bool:
    """Return whether the library should multiply by float weights: its kernels here are faster than onnxruntime's."""
    from lucid_deploy.plugins.hosts.onnxruntime.build import kernels_name

    return library is not None and kernels_name(library) in _MULTIPLIES


def multiplies_in_blocks(library: Path | None) -> bool:
    """Return whether the library multiplies by weights quantized in blocks: with AVX2 or AVX-512 VNNI."""
    from lucid_deploy.plugins.hosts.onnxruntime.build import has_dots

    return library is not None and has_dots(library)


def describe_kernels() -> dict[str, str | None]:
    """Report for ``inspect`` which kernels ``auto`` chooses on this machine, or why the library cannot be used."""
    from lucid_deploy.plugins.hosts.onnxruntime.build import default_ort_library, kernels_name

    facts: dict[str, str | None] = {"auto": "functions", "library": None, "instructions": None, "problem": None}
    try:
        library = choose_kernels("auto")
        if library is not None:
            facts.update(auto="library", library=str(library), instructions=kernels_name(library))
    except LucidError as error:
        facts.update(auto=None, library=str(default_ort_library()), problem=str(error))
    return facts
