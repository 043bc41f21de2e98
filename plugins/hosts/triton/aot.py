"""Compile the kernels ahead of time, for every supported GPU and with none present.

Each compiled form ("variant") is one type, padded head width and width unit; the plugin picks one by the shapes it is
given. Compiling is done in processes of its own, so that neither Triton nor its settings reach the caller's.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from lucid_deploy.errors import LucidError, missing_extra
from lucid_deploy.plugins.decode_attention import plan as decode_attention
from lucid_deploy.plugins.delta_rule import plan as delta_rule
from lucid_deploy.plugins.hosts.triton.compiled_kernel import CompiledKernel, default_cache, load, save
from lucid_deploy.plugins.hosts.triton.kernel_functions import SOURCES, kernel_functions
from lucid_deploy.plugins.precondition import plan as precondition
from lucid_deploy.plugins.shared.plan import Variant

PLUGINS = Path(__file__).parents[2]
ARCHITECTURES = (80, 86, 89, 90, 100, 120)  # compute capabilities with machine code of their own
PTX_ARCHITECTURE = 86  # whose PTX every newer chip can compile; 8.6's shared memory fits all of them, 8.0's does not
FLOAT8_PTX_ARCHITECTURE = decode_attention.FLOAT8_ARCH  # of kernels that convert E4M3, with the shared memory of 8.6
# Shared memory a program may use, bytes: CUDA C++ Programming Guide, technical specifications by compute capability.
SHARED_LIMITS = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
POINTER_TYPES = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16"}
JOBS = 2
_SCALES = ("p_k_scale", "p_y_scale")  # of a cache of E4M3
_WITH_COUNTERS = ("key_norms_kernel", "key_tiles_kernel", "precondition_kernel")  # their workspace begins with int32

Progress = Callable[[int, int, str], None]


Item = tuple[Variant, int]  # what is compiled, and for which architecture


def variants(arch: int) -> list[Variant]:
    """Return what is compiled for one architecture: head widths 16 to 256 that are multiples of 4, all three types."""
    return [*precondition.variants(arch), *decode_attention.variants(arch), *delta_rule.variants(arch)]


def compile_kernels(
    archs: Sequence[int] = ARCHITECTURES,
    *,
    ptx: bool = True,
    select: Callable[[Variant], bool] = lambda variant: True,
    cache: Path | None = None,
    jobs: int = JOBS,
    progress: Progress = lambda done, total, name: None,
) -> list[CompiledKernel]:
    """Compile every variant for every architecture, or take it from the cache.

    Args:
        archs: Compute capabilities, 90 for 9.0.
        ptx: Also keep PTX of compute capability 8.6 (8.9 where E4M3 is read), for chips newer than all in the list.
        select: Which variants; all by default.
        cache: Folder of earlier results; None is the user's cache folder.
        jobs: Processes that compile at the same time.
        progress: Called with (finished, total, name of the last) at the start and as variants finish.

    Returns:
        The compiled kernels, ordered by architecture and variant, PTX last.

    Raises:
        LucidError: An architecture that is not supported, Triton is not installed, or it fails on a kernel.
    """
    unknown = [arch for arch in archs if arch not in ARCHITECTURES]
    if unknown or not archs:
        names = ", ".join(map(str, ARCHITECTURES))
        raise LucidError(f"Kernels cannot be compiled for {unknown or 'no architecture'}; choose from: {names}.")
    cache = default_cache() if cache is None else cache
    wanted = sorted({*archs, PTX_ARCHITECTURE, FLOAT8_PTX_ARCHITECTURE} if ptx else set(archs))
    work = [
        (variant, arch)
        for arch in wanted
        for variant in variants(arch)
        if select(variant) and (arch in archs or arch == ptx_architecture(variant))
    ]
    paths = {item: cache / key for item, key in zip(work, cache_keys(work), strict=True)}
    found = {item: kernels for item, path in paths.items() if (kernels := load(path))}
    progress(len(found), len(work), "kernels")
    for item, kernels in compile_all([item for item in work if item not in found], jobs):
        save(paths[item], kernels)
        found[item] = kernels
        progress(len(found), len(work), kernels[0].variant)
    everything = [kernel for item in work for kernel in found[item]]
    code = [kernel for kernel in everything if kernel.arch in archs and not kernel.is_ptx]
    return code + [kernel for kernel in everything if kernel.is_ptx and ptx]


def ptx_architecture(variant: Variant) -> int:
    """Return the compute capability that a variant's PTX is for."""
    return FLOAT8_PTX_ARCHITECTURE if variant.kernel == decode_attention.FLOAT8_KERNEL else PTX_ARCHITECTURE


def cache_key(variant: Variant, arch: int, sources: Sequence[str] | None = None) -> str:
    """Return a hash of what the compiled code depends on: sources, Triton's version, architecture, constants."""
    return next(cache_keys([(variant, arch)], sources))


def cache_keys(items: Iterable[Item], sources: Sequence[str] | None = None, triton: str | None = None) -> Iterator[str]:
    """Yield :func:`cache_key` of each item, of sources that are read once.

    They depend on no machine and no path, so they also tell whether a report of compiled code is of these sources.

    Args:
        items: Variants and architectures.
        sources: Paths below the folder of the plugins; None: those of all operators.
        triton: Version of Triton; None: the one that is installed.

    Raises:
        LucidError: No version is given, and Triton is not installed.
    """
    triton = triton_version() if triton is None else triton
    of_sources = hashlib.sha256()
    for source in SOURCES if sources is None else sources:
        of_sources.update((PLUGINS / source).read_bytes())
    for variant, arch in items:
        digest = of_sources.copy()
        digest.update(json.dumps([triton, asdict(variant), arch], sort_keys=True).encode())
        yield digest.hexdigest()


def triton_version() -> str:
    """Return the version of Triton that is installed; LucidError if there is none."""
    try:
        return version("triton")
    except PackageNotFoundError:
        raise missing_extra("triton", "kernels", "compile the GPU kernels") from None


def compile_all(
    work: list[Item], jobs: int, compile_one: Callable[[Variant, int], list[CompiledKernel]] | None = None
) -> Iterator[tuple[Item, list[CompiledKernel]]]:
    """Yield every variant and architecture with its result, as processes finish.

    Args:
        work: Variants and architectures.
        jobs: Processes at the same time.
        compile_one: What they call; None: :func:`compile_variant`.
    """
    if not work:
        return
    with compilers(min(jobs, len(work))) as pool:
        futures = {pool.submit(compile_one or compile_variant, *item): item for item in work}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def compilers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Yield processes that compile, which start when they are used.

    All that they and their tools write is in a temporary folder that is removed at the end.

    Raises:
        OSError: The folder or the processes cannot be made.
    """
    with (
        tempfile.TemporaryDirectory(prefix="lucid-triton-") as scratch,
        ProcessPoolExecutor(jobs, get_context("spawn"), start_compiler, (scratch,)) as pool,
    ):
        yield pool


def start_compiler(scratch: str) -> None:
    """Settle what Triton reads from the environment when it is imported, in a compiling process that ends with ours.

    Args:
        scratch: A folder for what Triton keeps; also the process's folder of temporary files.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TMPDIR"] = tempfile.tempdir = scratch
    os.environ["TRITON_CACHE_DIR"] = scratch
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
    os.environ.pop("TRITON_INTERPRET", None)


def _end_with_parent() -> None:
    """End this process with its parent: otherwise it waits forever on a queue whose other end it holds open itself."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def compile_variant(variant: Variant, arch: int) -> list[CompiledKernel]:
    """Compile one variant in this process: to machine code and, for one architecture, to PTX as well.

    Raises:
        LucidError: Triton fails, with its message.
    """
    compiled = compile_form(variant, arch)
    metadata = compiled.metadata
    if metadata.global_scratch_size or metadata.profile_scratch_size:
        raise LucidError(f"{variant.name}: Triton asks for scratch memory, which the plugin does not provide.")
    if metadata.shared > SHARED_LIMITS[arch]:
        raise LucidError(
            f"{variant.name} needs {metadata.shared} bytes of shared memory and sm_{arch} has {SHARED_LIMITS[arch]}. "
            "Choose smaller blocks or fewer stages in the operator's tuned.json."
        )
    kernel = CompiledKernel(
        variant=variant.name,
        arch=arch,
        is_ptx=False,
        entry=metadata.name,
        shared_bytes=metadata.shared,
        num_warps=variant.num_warps,
        constants=dict(variant.constants),
        arguments=argument_names(variant),
        image=compiled.asm["cubin"],
    )
    if arch != ptx_architecture(variant):
        return [kernel]
    return [kernel, replace(kernel, is_ptx=True, image=compiled.asm["ptx"].encode())]


def compile_form(variant: Variant, arch: int) -> Any:
    """Return what Triton makes of a variant in this process: ``asm`` has its PTX and machine code by name.

    Raises:
        LucidError: Triton fails, with its message.
    """
    function = kernel_functions("compile the GPU kernels")[variant.kernel]
    types = {name: _type(name, variant) for name in argument_names(variant)}
    constants = {**dict(variant.constants), **dict.fromkeys(_absent(variant))}
    launch = variant.num_warps, variant.num_stages
    return compile_function(function, types, constants, arch, launch, variant.name)


def argument_names(variant: Variant) -> list[str]:
    """Return the names of what a variant is launched with, in order."""
    function = kernel_functions("compile the GPU kernels")[variant.kernel]
    return [name for name in function.arg_names if name not in (*dict(variant.constants), *_absent(variant))]


def compile_function(
    function: Any,
    types: dict[str, str],
    constants: dict[str, int | None],
    arch: int,
    launch: tuple[int, int],
    name: str,
) -> Any:
    """Compile a Triton function for a GPU that need not be here.

    Args:
        function: Of ``triton.jit``; arguments that begin with ``p_`` are pointers.
        types: Triton's types of its arguments, such as ``*fp16`` and ``i32``.
        constants: Its compile-time constants; None: a pointer that is not given.
        arch: Compute capability, 90 for 9.0.
        launch: Warps of a program, and stages of its loops.
        name: For messages.

    Returns:
        What Triton compiled.

    Raises:
        LucidError: Triton fails, with its message.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {argument: types.get(argument, "constexpr") for argument in function.arg_names}
    # TensorRT's and PyTorch's buffers start at multiples of 256 bytes; no other argument is assumed to be a multiple.
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, each in enumerate(function.arg_names)
        if each.startswith("p_") and each in types
    }
    options = {"num_warps": launch[0], "num_stages": launch[1], "enable_fp_fusion": True}
    source = ASTSource(function, signature, constants, aligned)
    try:
        return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    except Exception as error:
        raise LucidError(f"Triton failed to compile {name} for sm_{arch}: {error}") from error


def _absent(variant: Variant) -> tuple[str, ...]:
    """Return the arguments of its function that a variant goes without."""
    if variant.kernel == "precondition_kernel" and "INT8" not in dict(variant.constants):
        return ("INT8",)
    if variant.kernel == "key_norms_kernel" and variant.dtype != "float32":
        return ("p_y_past",)
    if variant.kernel in ("decode_split_kernel", decode_attention.FLOAT8_KERNEL):
        scales = _SCALES if variant.kernel == "decode_split_kernel" else ()
        return (*scales, *({"ADD_SQUARES", "Y_BY_FLOAT32", "PARTS", "PAIRS"} - set(dict(variant.constants))))
    return ()


def _type(argument: str, variant: Variant) -> str:
    """Return Triton's type of an argument, which its name tells: p_ pointers, n_ and width_units integers."""
    if argument.removeprefix("p_") in delta_rule.FIXED or argument in _SCALES:
        return "*fp32"
    if variant.kernel == decode_attention.FLOAT8_KERNEL and argument in ("p_k", "p_y"):
        return "*fp8e4nv"
    if argument == "p_mask":
        return "*u8"
    if argument == "p_work":
        return "*i32" if variant.kernel in _WITH_COUNTERS else "*fp32"
    if argument.startswith("p_"):
        return POINTER_TYPES[variant.dtype]
    return "i32" if argument.startswith("n_") or argument == "width_units" else "fp32"
