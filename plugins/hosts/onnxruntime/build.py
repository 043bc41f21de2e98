"""Compile the library of kernels for onnxruntime's CPU, and check it before use against the record beside it."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from lucid_deploy.errors import LucidError
from lucid_deploy.files import temporary_sibling
from lucid_deploy.plugins.hosts.compiler import check_gcc, find_compiler, run_compiler, system_includes
from lucid_deploy.plugins.hosts.libraries import cache_folder, load_obstacle, prebuilt

ORT_ABI = 7  # raise it when what the library exports changes, or what the operators mean
LIBRARY_NAME = "liblucid_onnxruntime.so"
HOST = Path(__file__).parent
PLUGINS = HOST.parents[1]
HEADER = "onnxruntime_c_api.h"
# -ffp-contract: the sums of products are written for fused multiply-add, which strict C++17 does not form by itself.
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
BUILD_COMMAND = "lucid-deploy plugin build --target onnxruntime"


def user_ort_library() -> Path:
    """Return where ``lucid-deploy plugin build`` puts the library: beside TensorRT's."""
    return cache_folder() / LIBRARY_NAME


def default_ort_library() -> Path:
    """Return where sessions look for the library: what the wheel brought, else where ``plugin build`` puts it."""
    return prebuilt(LIBRARY_NAME) or user_ort_library()


def source_hash() -> str:
    """Return a hash of all that the library is made of: sources and flags."""
    digest = hashlib.sha256(json.dumps([ORT_ABI, FLAGS]).encode())
    for path in sources():
        digest.update(path.relative_to(PLUGINS).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def build_ort_library(
    output: Path | None = None, *, compiler: str | None = None, include: Path | None = None
) -> tuple[Path, bool]:
    """Build the library, or keep the one that is there when it was built from the same sources.

    Args:
        output: The library to write; None: :func:`user_ort_library`. It and its record appear when complete.
        compiler: GCC's C++ compiler; None finds one.
        include: Folder of ``onnxruntime_c_api.h``; None takes ``ONNXRUNTIME_ROOT``, else the system's, else the
            library's own declarations of the part it uses, which suffice.

    Returns:
        The library, and whether it was compiled now.

    Raises:
        LucidError: No compiler, or Clang, no header where one was named, the compiler fails, or the folder cannot be
            written.
    """
    output = user_ort_library() if output is None else output
    if _is_current(output):
        return output, False
    compiler = find_compiler() if compiler is None else compiler
    check_gcc(compiler)  # vectors are shuffled, and instruction sets switched, in ways that Clang does not know
    include = find_ort_headers() if include is None else include
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with temporary_sibling(output) as folder:
            library = Path(folder, LIBRARY_NAME)
            run_compiler([compiler, *_arguments(include), "-Wl,--no-undefined"], library)
            record = {"abi": ORT_ABI, "sources": source_hash(), "sha256": file_hash(library)}
            # Of the library that is replaced too: what is there is whole whenever this process is killed.
            record["previous"] = _record_of(output)
            written = Path(folder, "record.json")
            written.write_text(json.dumps(record) + "\n")
            os.replace(written, _record_path(output))
            os.replace(library, output)
    except OSError as error:
        raise LucidError(f"{output} cannot be written: {error}") from error
    return output, True


def check_ort_library(library: Path) -> None:
    """Check that a library is whole and was built from this version's sources.

    Raises:
        LucidError: It is missing, damaged, or of another version.
    """
    if not library.is_file():
        raise LucidError(f"There is no library of kernels {library}. Run: {BUILD_COMMAND}")
    advice = f"Run: {BUILD_COMMAND}, or leave it aside with --kernels functions."
    record = _record_of(library)
    if record is None:
        raise LucidError(f"The library of kernels {library} is damaged: it differs from its record. {advice}")
    if record["abi"] != ORT_ABI or record["sources"] != source_hash():
        raise LucidError(f"The library of kernels {library} was built from the sources of another version. {advice}")


def kernels_name(library: Path, wanted: str | None = None) -> str:
    """Return which kernels a checked library runs on this processor: avx512, avx2 or portable.

    Args:
        library: The library.
        wanted: Kernels to choose from now on in this process, for tests and comparisons; None changes nothing.

    Raises:
        LucidError: It cannot be loaded, or this processor cannot run the kernels that are wanted.
    """
    loaded = _loaded(library)
    if wanted is not None and not loaded.lucidOrtSelectKernels(wanted.encode()):
        raise LucidError(f"This processor cannot run the kernels {wanted!r}, or there are none of that name.")
    loaded.lucidOrtKernels.restype = ctypes.c_char_p
    return str(loaded.lucidOrtKernels().decode())


def has_dots(library: Path) -> bool:
    """Return whether a checked library multiplies bytes with instructions that this processor has for it, AVX-512 VNNI.

    Raises:
        LucidError: It cannot be loaded.
    """
    return bool(_loaded(library).lucidOrtHasDots())


def _loaded(library: Path) -> ctypes.CDLL:
    if wrong := load_obstacle(library):
        raise LucidError(f"{library} is not a usable library of kernels: {wrong}. Run: {BUILD_COMMAND}")
    try:
        loaded = ctypes.CDLL(str(library.absolute()))  # a name without a folder would be looked for elsewhere
        abi = loaded.lucidOrtAbi()
        if abi == ORT_ABI:
            for name in ("lucidOrtSelectKernels", "lucidOrtKernels", "lucidOrtHasDots"):
                getattr(loaded, name)
    except (OSError, AttributeError) as error:
        raise LucidError(f"{library} is not a usable library of kernels ({error}). Run: {BUILD_COMMAND}") from error
    if abi != ORT_ABI:
        raise LucidError(f"{library} has ABI {abi} and this version needs {ORT_ABI}. Run: {BUILD_COMMAND}")
    return loaded


def find_ort_headers() -> Path | None:
    """Return the folder of ``onnxruntime_c_api.h``: ``ONNXRUNTIME_ROOT``, else the system's; None if there is none.

    Raises:
        LucidError: ``ONNXRUNTIME_ROOT`` has none.
    """
    root = os.environ.get("ONNXRUNTIME_ROOT")
    if root:
        for place in (Path(root) / "include", Path(root) / "include" / "onnxruntime"):
            if (place / HEADER).is_file():
                return place
        raise LucidError(f"ONNXRUNTIME_ROOT is {root}, where there is no include/{HEADER}. Correct or unset it.")
    for place in system_includes():
        if (place / "onnxruntime" / HEADER).is_file():
            return place / "onnxruntime"
    return None


def sources() -> list[Path]:
    """Return all that the library is made of: the host's files, what operators share, and every operator's CPU part."""
    host = [path for path in HOST.iterdir() if path.suffix in (".cpp", ".h", ".inl")]
    parts = [path for name in ("cpu*.h", "cpu*.inl", "onnxruntime.h") for path in PLUGINS.glob(f"*/{name}")]
    return sorted([*host, *parts, PLUGINS / "hosts" / "operators_generated.h"])


def _arguments(include: Path | None) -> list[str]:
    arguments = [*FLAGS, f"-DLUCID_ORT_ABI={ORT_ABI}", "-I", str(PLUGINS)]
    if include is not None:  # -isystem: warnings in other people's headers are not ours to fix
        arguments += ["-DLUCID_ORT_HEADER", "-isystem", str(include.absolute())]
    return arguments + [str(path) for path in sources() if path.suffix == ".cpp"]


def _record_path(library: Path) -> Path:
    return library.with_name(library.name + ".json")


def _record_of(library: Path) -> dict[str, Any] | None:
    """Return what the file beside a library records of it; None: nothing, or of another one."""
    try:
        record, present = json.loads(_record_path(library).read_text()), file_hash(library)
    except (OSError, ValueError):
        return None
    fields = ("abi", "sources", "sha256")
    for each in (record, record.get("previous") if isinstance(record, dict) else None):
        if isinstance(each, dict) and all(field in each for field in fields) and each["sha256"] == present:
            return {field: each[field] for field in fields}
    return None


def _is_current(library: Path) -> bool:
    try:
        check_ort_library(library)
    except LucidError:
        return False
    return True


def file_hash(path: Path) -> str:
    """Return the sha256 of a file, as records have it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
