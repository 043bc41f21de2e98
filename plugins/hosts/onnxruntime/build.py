"""Compile the library of CPU kernels for onnxruntime; before loading, check it against its build record (JSON)."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from lucid_deploy.errors import LucidError
from lucid_deploy.files import temporary_sibling
from lucid_deploy.plugins.hosts.compiler import check_gcc, find_compiler, run_compiler
from lucid_deploy.plugins.hosts.libraries import cache_folder, prebuilt
from lucid_deploy.plugins.hosts.operators_header import HEADER as OPERATORS_HEADER
from lucid_deploy.plugins.hosts.operators_header import header_text

ORT_ABI = 11  # increase it when the library's exports or the meaning of an operator change
LIBRARY_NAME = "liblucid_onnxruntime.so"
HOST = Path(__file__).parent
PLUGINS = HOST.parents[1]
# -ffp-contract=fast lets the compiler use fused multiply-add. It is GCC's default for C++, set explicitly to be sure.
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
BUILD_COMMAND = "lucid-deploy plugin build --target onnxruntime"


def user_ort_library() -> Path:
    """Return where ``plugin build`` writes the library by default; each version of the sources has its own file."""
    return cache_folder() / f"{Path(LIBRARY_NAME).stem}-{source_hash()[:12]}.so"


def default_ort_library() -> Path:
    """Return where sessions look for the library: in the wheel, else where ``plugin build`` writes it."""
    return prebuilt(LIBRARY_NAME) or user_ort_library()


def source_hash() -> str:
    """Return a hash of the library's sources, the generated header among them, compiler flags and ABI number."""
    digest = hashlib.sha256(json.dumps([ORT_ABI, FLAGS, header_text()]).encode())
    for path in sources():
        digest.update(path.relative_to(PLUGINS).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def build_ort_library(output: Path | None = None) -> tuple[Path, bool]:
    """Build the library, unless the existing one is intact and was built from the same sources.

    Atomically replaces first the record beside ``output`` (None: :func:`user_ort_library`), then ``output``.

    Returns:
        The library's path, and whether it was compiled now.

    Raises:
        LucidError: There is no compiler, it is Clang or fails, or the library's folder is unknown or not writable.
    """
    output = user_ort_library() if output is None else output
    if _is_current(output):
        return output, False
    compiler = find_compiler()
    check_gcc(compiler)  # the sources use GCC's vector shuffles and target pragmas
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with temporary_sibling(output) as folder:
            library = Path(folder, LIBRARY_NAME)
            Path(folder, OPERATORS_HEADER).write_text(header_text())
            run_compiler([compiler, *_arguments(), "-Wl,--no-undefined"], library)
            record = {"abi": ORT_ABI, "sources": source_hash(), "sha256": file_hash(library)}
            record_file = Path(folder, "record.json")
            record_file.write_text(json.dumps(record) + "\n")
            os.replace(record_file, _record_path(output))
            os.replace(library, output)
    except OSError as error:
        raise LucidError(f"{output} cannot be written: {error}") from error
    return output, True


def check_ort_library(library: Path) -> None:
    """Check that a library matches its record and was built from this version's sources.

    Raises:
        LucidError: It is missing or damaged, has no record, or is of another version.
    """
    if not library.is_file():
        raise LucidError(f"There is no library of kernels {library}. Run: {BUILD_COMMAND}")
    advice = f"Run: {BUILD_COMMAND}, or run without it: --kernels functions."
    record = _record_of(library)
    if record is None:
        raise LucidError(f"The library {library} cannot be trusted: its record is missing or does not match. {advice}")
    if record["abi"] != ORT_ABI or record["sources"] != source_hash():
        raise LucidError(f"The library of kernels {library} was built from the sources of another version. {advice}")


def kernels_name(library: Path, wanted: str | None = None) -> str:
    """Return the name of the kernels that a checked library runs on this processor: avx512, avx2 or portable.

    Args:
        library: The library.
        wanted: Kernels to select for this process, for tests and comparisons; None changes nothing.

    Raises:
        LucidError: The library cannot be loaded, or ``wanted`` is unknown or does not run on this processor.
    """
    loaded = _loaded(library)
    if wanted is not None and not loaded.lucidOrtSelectKernels(wanted.encode()):
        raise LucidError(f"This processor cannot run the kernels {wanted!r}, or there are none of that name.")
    loaded.lucidOrtKernels.restype = ctypes.c_char_p
    return str(loaded.lucidOrtKernels().decode())


def has_dots(library: Path) -> bool:
    """Return whether a checked library multiplies int8 with AVX2 or AVX-512 VNNI on this processor.

    Raises:
        LucidError: The library cannot be loaded.
    """
    return bool(_loaded(library).lucidOrtHasDots())


def _loaded(library: Path) -> ctypes.CDLL:
    try:
        loaded = ctypes.CDLL(str(library.absolute()))  # a bare file name would be searched in the system's folders
        abi = loaded.lucidOrtAbi()
        if abi == ORT_ABI:
            for name in ("lucidOrtSelectKernels", "lucidOrtKernels", "lucidOrtHasDots"):
                getattr(loaded, name)
    except (OSError, AttributeError) as error:
        raise LucidError(f"{library} is not a usable library of kernels ({error}). Run: {BUILD_COMMAND}") from error
    if abi != ORT_ABI:
        raise LucidError(f"{library} has ABI {abi} and this version needs {ORT_ABI}. Run: {BUILD_COMMAND}")
    return loaded


def sources() -> list[Path]:
    """Return the library's source files: the host's, the shared ones, and every operator's CPU kernels."""
    host = [path for path in HOST.iterdir() if path.suffix in (".cpp", ".h", ".inl")]
    parts = [path for name in ("cpu*.h", "cpu*.inl", "onnxruntime.h") for path in PLUGINS.glob(f"*/{name}")]
    return sorted([*host, *parts])


def _arguments() -> list[str]:
    files = [str(path) for path in sources() if path.suffix == ".cpp"]
    return [*FLAGS, f"-DLUCID_ORT_ABI={ORT_ABI}", "-I", str(PLUGINS), "-I", ".", *files]


def _record_path(library: Path) -> Path:
    return library.with_name(library.name + ".json")


def _record_of(library: Path) -> dict[str, Any] | None:
    """Return the record beside a library; None if it is missing or malformed, or describes another library."""
    try:
        record, actual = json.loads(_record_path(library).read_text()), file_hash(library)
    except (OSError, ValueError):
        return None
    fits = isinstance(record, dict) and {"abi", "sources", "sha256"} <= record.keys() and record["sha256"] == actual
    return record if fits else None


def _is_current(library: Path) -> bool:
    try:
        check_ort_library(library)
    except LucidError:
        return False
    return True


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
