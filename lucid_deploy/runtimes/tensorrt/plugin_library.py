"""Find the library of TensorRT plugins, or build it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lucid_deploy.errors import LucidError
from lucid_deploy.files import temporary_sibling

if TYPE_CHECKING:
    from lucid_deploy.plugins.hosts.triton.compiled_kernel import CompiledKernel

_SECONDS = 1.5  # of one core to compile a kernel, measured on a CPU from 2023


def user_library() -> Path:
    """Return where ``lucid-deploy plugin build`` puts the library."""
    from lucid_deploy.plugins.hosts.libraries import cache_folder
    from lucid_deploy.plugins.hosts.tensorrt.build import LIBRARY_NAME

    return cache_folder() / LIBRARY_NAME


def default_library() -> Path:
    """Return where commands look for the library: in the wheel, or else where ``plugin build`` puts it."""
    from lucid_deploy.plugins.hosts.libraries import prebuilt
    from lucid_deploy.plugins.hosts.tensorrt.build import LIBRARY_NAME

    return prebuilt(LIBRARY_NAME) or user_library()


def build_library(
    output: Path,
    archs: Sequence[int] = (),
    dtypes: Sequence[str] = (),
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
    head_dims: Sequence[int] = (),
    jobs: int | None = None,
) -> list[CompiledKernel]:
    """Compile the kernels and write the library ``output``; empty sequences: all architectures, types and head widths.

    Returns:
        The kernels in the library.
    """
    from lucid_deploy.plugins.hosts.tensorrt.build import build_plugin
    from lucid_deploy.plugins.hosts.triton.aot import ARCHITECTURES, JOBS, compile_kernels
    from lucid_deploy.plugins.hosts.triton.compiled_kernel import default_cache
    from lucid_deploy.plugins.shared.plan import PADDED_WIDTHS, padded_width

    try:
        widths = {padded_width(width) for width in head_dims} or set(PADDED_WIDTHS)
    except ValueError as error:
        raise LucidError(f"No plugin library was built: {error}.") from error
    check_tools()
    output.parent.mkdir(parents=True, exist_ok=True)
    with temporary_sibling(output):  # fails here, before minutes of compiling, if the output cannot be written
        pass
    kernels = compile_kernels(
        archs or ARCHITECTURES,
        select=lambda variant: (not dtypes or variant.dtype in dtypes) and variant.padded_width in widths,
        cache=default_cache(),
        jobs=JOBS if jobs is None else jobs,
        progress=progress,
    )
    build_plugin(output, kernels)
    return kernels


def check_tools() -> None:
    """Raise a LucidError if a tool for compiling the library is not installed."""
    from lucid_deploy.plugins.hosts.compiler import find_compiler
    from lucid_deploy.plugins.hosts.tensorrt.build import find_cuda_headers, find_tensorrt_headers
    from lucid_deploy.plugins.hosts.triton.aot import triton_version

    find_compiler(), find_tensorrt_headers(), find_cuda_headers(), triton_version()


def find_or_build(
    dtype: str,
    head_dims: Sequence[int],
    capabilities: Sequence[int],
    announce: Callable[[str], None],
    progress: Callable[[int, int, str], None],
) -> Path:
    """Return the library for an artifact's engines; if there is none, build one for their type and head widths."""
    from lucid_deploy.plugins.hosts.triton.aot import ARCHITECTURES, PTX_ARCHITECTURE, variants
    from lucid_deploy.plugins.shared.plan import padded_width

    library = default_library()
    if library.is_file():
        return library
    archs = tuple(sorted(capabilities)) if capabilities and set(capabilities) <= set(ARCHITECTURES) else ARCHITECTURES
    names = "all" if archs == ARCHITECTURES else "-".join(map(str, archs))
    widths = {padded_width(width) for width in head_dims}
    columns = "-".join(f"d{width}" for width in sorted(widths))
    own = library.with_name(f"{library.stem}-{dtype}-{columns}-{names}.so")
    if own.is_file():
        return own
    check_tools()
    wanted = [each for arch in {*archs, PTX_ARCHITECTURE} for each in variants(arch) if each.padded_width in widths]
    count = sum(variant.dtype == dtype for variant in wanted)
    minutes = max(round(count * _SECONDS / 60), 1)
    announce(
        f"There is no plugin library, so one is built now: {count} GPU kernels for {dtype} and heads of width "
        f"{', '.join(map(str, head_dims))}, about {minutes} minute{'' if minutes == 1 else 's'} of one core unless "
        f"they were compiled before. It is kept as {own}; --plugin names another library instead."
    )
    build_library(own, archs, (dtype,), progress, head_dims)
    return own
