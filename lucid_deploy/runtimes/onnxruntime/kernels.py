"""What computes the operators of ``ai.lucid`` in onnxruntime on the CPU: the library of kernels, or graph functions.

onnxruntime takes a registered operator before a function of the same name in the model, so both can be in place.
"""

from __future__ import annotations

from pathlib import Path

from lucid_deploy.errors import LucidError

_MULTIPLIES = ("avx512", "avx2")  # instructions whose products were compared with onnxruntime's: docs/performance.md


def choose_kernels(kernels: str, provider: str | None = "cpu", inline: bool = False) -> Path | None:
    """Return the library to register with a session, None where the graph's functions are to run."""
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
    """Return whether a library computes products by weights itself: with AVX-512 and AVX2.

    On other processors onnxruntime's own were not compared with it, and stay.
    """
    from lucid_deploy.plugins.hosts.onnxruntime.build import kernels_name

    return library is not None and kernels_name(library) in _MULTIPLIES


def multiplies_in_blocks(library: Path | None) -> bool:
    """Return whether a library computes products by weights in blocks itself: with AVX-512 VNNI.

    With other instructions onnxruntime's own is faster.
    """
    from lucid_deploy.plugins.hosts.onnxruntime.build import has_dots

    return library is not None and has_dots(library)


def describe_kernels() -> dict[str, str | None]:
    """Say what ``auto`` chooses on this machine, for ``inspect``: never raises for a library that cannot be used."""
    from lucid_deploy.plugins.hosts.onnxruntime.build import default_ort_library, kernels_name

    facts: dict[str, str | None] = {"auto": "functions", "library": None, "instructions": None, "problem": None}
    try:
        library = choose_kernels("auto")
        if library is not None:
            facts.update(auto="library", library=str(library), instructions=kernels_name(library))
    except LucidError as error:
        facts.update(auto=None, library=str(default_ort_library()), problem=str(error))
    return facts
