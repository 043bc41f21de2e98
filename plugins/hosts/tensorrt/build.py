"""Compile the TensorRT plugin library: one compiler call, with the compiled kernels embedded."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lucid_deploy.errors import LucidError
from lucid_deploy.files import temporary_sibling
from lucid_deploy.plugins.hosts.compiler import (
    find_compiler,
    find_header,
    package_folders,
    run_compiler,
    system_includes,
)
from lucid_deploy.plugins.hosts.operators_header import HEADER, header_text
from lucid_deploy.plugins.shared.plan import PADDED_WIDTHS, padded_width

if TYPE_CHECKING:
    from lucid_deploy.plugins.hosts.triton.compiled_kernel import CompiledKernel

# Increase it when the library's exports change, or what engines store about plugins: their attributes, and the size of
# the workspace that they request when an engine is built.
PLUGIN_ABI = 9
LIBRARY_NAME = "liblucid_tensorrt.so"
HOST = Path(__file__).parent
PLUGINS = HOST.parents[1]
CUDA_TOOLKIT = Path("/usr/local/cuda/include")
FLAGS = ("-std=c++17", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror")


def build_plugin(output: Path, kernels: Sequence[CompiledKernel]) -> Path:
    """Build the plugin library, and return ``output``.

    Args:
        output: The library to write, atomically.
        kernels: The compiled kernels to embed, from :func:`lucid_deploy.plugins.hosts.triton.aot.compile_kernels`.

    Raises:
        LucidError: There are no kernels, no compiler or no headers, or the compiler fails.
    """
    if not kernels:
        raise LucidError("There are no compiled kernels to embed in the plugin library.")
    compiler, tensorrt_include, cuda_include = find_compiler(), find_tensorrt_headers(), find_cuda_headers()
    output.parent.mkdir(parents=True, exist_ok=True)
    with temporary_sibling(output) as folder:
        data, table, library = (folder / name for name in ("kernels.bin", "kernels.inc", LIBRARY_NAME))
        data.write_bytes(b"".join(_module(kernel) for kernel in kernels))
        table.write_text("".join(_table_rows(kernels)))
        (folder / HEADER).write_text(header_text())
        command = [compiler, *FLAGS, f"-DLUCID_PLUGIN_ABI={PLUGIN_ABI}", "-I", str(PLUGINS)]
        # Relative to the compiler's working directory: a folder's name may need escapes in a C++ string.
        command += [f'-DLUCID_KERNEL_DATA="{data.name}"', f'-DLUCID_KERNEL_TABLE="{table.name}"', "-I", "."]
        # -isystem suppresses warnings in TensorRT's and CUDA's headers.
        command += ["-isystem", str(tensorrt_include.absolute()), "-isystem", str(cuda_include.absolute())]
        command += [*map(str, sources()), "-ldl", "-Wl,--no-undefined"]
        run_compiler(command, library)
        os.replace(library, output)
    return output


def sources() -> list[Path]:
    """Return the C++ sources: the host's, and each operator's ``tensorrt.cpp``."""
    return [*sorted(HOST.glob("*.cpp")), *sorted(PLUGINS.glob("*/tensorrt.cpp"))]


def plugin_abi(library: Path) -> int:
    """Return the ABI number of a built plugin library; this version needs PLUGIN_ABI.

    Raises:
        LucidError: The library cannot be loaded or is not our plugin library.
    """
    try:
        function = ctypes.CDLL(str(library.absolute())).lucidPluginAbi
    except (OSError, AttributeError) as error:
        raise LucidError(
            f"{library} is not a usable plugin library ({error}). Run: lucid-deploy plugin build"
        ) from error
    return int(function())


def check_plugin(library: Path) -> None:
    """Check that a library exists and has the ABI of this version.

    Raises:
        LucidError: It is missing, damaged, or has another ABI.
    """
    if not library.is_file():
        raise LucidError(f"There is no plugin library {library}. Run: lucid-deploy plugin build")
    if (abi := plugin_abi(library)) != PLUGIN_ABI:
        raise LucidError(
            f"The plugin library {library} has ABI {abi} and this version needs {PLUGIN_ABI}. "
            "Run: lucid-deploy plugin build"
        )


def check_kernels(
    library: Path, dtype: str, head_dims: Sequence[int], float8: bool = False, capabilities: Sequence[int] = ()
) -> None:
    """Check that a library has the kernels for an artifact, since ``plugin build`` can leave some out.

    Without this check an engine could be built, and would fail at run time.

    Args:
        library: A checked library.
        dtype: Type of the artifact.
        head_dims: Required head widths, 16 to 256.
        float8: Whether kernels for a cache of E4M3 are required.
        capabilities: Compute capabilities, 86 for 8.6, for which machine code or PTX is required.

    Raises:
        LucidError: The library lacks a kernel.
    """
    content = library.read_bytes()  # kernel names contain type and padded width: decode_split_float16_d64_u8_r16
    dtypes = [name for name in ("float32", "float16", "bfloat16") if f"_{name}_d".encode() in content]
    if dtype not in dtypes:
        raise LucidError(
            f"The plugin library {library} has no kernels for {dtype}; it has them for "
            f"{', '.join(dtypes) or 'no type'}. Run: lucid-deploy plugin build --target tensorrt --dtype {dtype} "
            "--output LIBRARY, and pass --plugin LIBRARY."
        )
    widths = [width for width in PADDED_WIDTHS if f"_{dtype}_d{width}_u".encode() in content]
    if missing := [width for width in head_dims if padded_width(width) not in widths]:
        listed = ",".join(map(str, head_dims))
        raise LucidError(
            f"The plugin library {library} has no kernels for head width {', '.join(map(str, missing))} in {dtype}; "
            f"it has them for padded widths {', '.join(map(str, widths))}. Run: lucid-deploy plugin build "
            f"--target tensorrt --dtype {dtype} --head-dim {listed} --output LIBRARY, and pass --plugin LIBRARY."
        )
    if float8 and f"_float8_{dtype}_d".encode() not in content:
        raise LucidError(
            f"The plugin library {library} has no kernels that read a cache in fp8. Run: lucid-deploy plugin build "
            "--target tensorrt --arch 89 --output LIBRARY, and pass --plugin LIBRARY."
        )
    parts = [f"_{dtype}_d{padded_width(width)}_u" for width in head_dims] + [f"_float8_{dtype}_d"] * float8
    unsupported = [each for each in capabilities if not all(_has_kernel(library, part, each) for part in parts)]
    if unsupported:
        from lucid_deploy.plugins.hosts.triton.aot import ARCHITECTURES

        archs = dict.fromkeys(max(each for each in ARCHITECTURES if each <= wanted) for wanted in capabilities)
        lacked, listed = (",".join(f"{each / 10:.1f}" for each in some) for some in (unsupported, archs))
        raise LucidError(
            f"The plugin library {library} has no kernels for a GPU of compute capability {lacked}. Run: "
            f"lucid-deploy plugin build --target tensorrt --dtype {dtype} --arch {listed} --output LIBRARY, and pass "
            "--plugin LIBRARY."
        )


def _has_kernel(library: Path, part: str, capability: int) -> bool:
    function = ctypes.CDLL(str(library.absolute())).lucidPluginHasKernel
    function.argtypes = [ctypes.c_char_p, ctypes.c_int32]
    return bool(function(part.encode(), capability))


def find_tensorrt_headers() -> Path:
    """Return the folder of TensorRT's headers: in ``TENSORRT_ROOT`` if set, else the system's, else kernel-lens's.

    Raises:
        LucidError: They were not found.
    """
    return find_header(
        "NvInferRuntime.h",
        "TENSORRT_ROOT",
        [*system_includes(), *(folder / "include" / "tensorrt" for folder in package_folders("kernel_lens"))],
        "TensorRT's headers",
    )


def find_cuda_headers() -> Path:
    """Return the folder of ``cuda.h``: in ``CUDA_HOME`` if set, else the toolkit's, the system's or a CUDA wheel's.

    Raises:
        LucidError: It was not found.
    """
    wheels = [path for folder in package_folders("nvidia") for path in sorted(folder.glob("*/include"), reverse=True)]
    places = [CUDA_TOOLKIT, *system_includes(), *wheels]
    return find_header("cuda.h", "CUDA_HOME", places, "CUDA's headers")


def _module(kernel: CompiledKernel) -> bytes:
    """Return a module's bytes for embedding: PTX ends with a zero byte, and the length is a multiple of 16."""
    image = kernel.image + b"\0" if kernel.is_ptx else kernel.image
    return image + b"\0" * (-len(image) % 16)


def _table_rows(kernels: Sequence[CompiledKernel]) -> Iterator[str]:
    """Yield an initialiser of the C++ struct Kernel for each kernel."""
    offset = 0
    for kernel in kernels:
        is_ptx = str(kernel.is_ptx).lower()
        blocks = f"{kernel.constants.get('BLOCK_M', 0)}, {kernel.constants.get('BLOCK_N', 0)}"
        names = f'"{kernel.variant}", {kernel.arch}, {is_ptx}, "{kernel.entry}"'
        int8 = str(bool(kernel.constants.get("INT8", 0))).lower()
        yield f"{{{names}, {kernel.shared_bytes}, {kernel.num_warps}, {blocks}, {int8}, {offset}}},\n"
        offset += len(_module(kernel))
