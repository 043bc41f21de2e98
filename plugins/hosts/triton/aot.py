"""Compile the Triton kernels ahead of time for every supported GPU; no GPU is needed.

A variant is a kernel compiled for one type, padded head width, width unit and, for decoding, number of rows; the plugin
chooses one by tensors' types and shapes. Compilation runs in other processes, since it sets environment variables.
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
ARCHITECTURES = (80, 86, 89, 90, 100, 120)  # compute capabilities that machine code is compiled for
PTX_ARCHITECTURE = 86  # drivers of newer GPUs compile its PTX; all of them have 8.6's shared memory, not all have 8.0's
FLOAT8_PTX_ARCHITECTURE = decode_attention.FLOAT8_ARCH  # for kernels that convert E4M3; same shared memory as 8.6
# Most shared memory of a program, bytes: CUDA C++ Programming Guide, technical specifications by compute capability.
SHARED_LIMITS = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
POINTER_TYPES = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16"}
JOBS = 2
_SCALES = ("p_k_scale", "p_y_scale")  # for a cache of E4M3
_WITH_COUNTERS = ("key_norms_kernel", "key_tiles_kernel", "precondition_kernel")  # their workspace starts with int32

Progress = Callable[[int, int, str], None]  # called with (finished, total, name)
Item = tuple[Variant, int]  # a variant and the architecture to compile it for


def variants(arch: int) -> list[Variant]:
    """Return all kernel variants for one architecture: for three types, and head widths 16 to 256 in steps of 4."""
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
        ptx: Also return PTX of compute capability 8.6 (8.9 for E4M3), for newer GPUs that cannot run the machine code.
        select: Returns whether to compile a variant; all by default.
        cache: Folder of cached results; None: the user's cache folder.
        jobs: Number of processes.
        progress: Called with (finished, total, name of the last kernel) at the start and after each variant.

    Returns:
        The compiled kernels, ordered by architecture and variant, PTX last.

    Raises:
        LucidError: An architecture is not supported, Triton is not installed, or Triton fails on a kernel.
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
    compiled = {item: kernels for item, path in paths.items() if (kernels := load(path))}
    progress(len(compiled), len(work), "kernels")
    for item, kernels in compile_all([item for item in work if item not in compiled], jobs):
        save(paths[item], kernels)
        compiled[item] = kernels
        progress(len(compiled), len(work), kernels[0].variant)
    everything = [kernel for item in work for kernel in compiled[item]]
    code = [kernel for kernel in everything if kernel.arch in archs and not kernel.is_ptx]
    return code + [kernel for kernel in everything if kernel.is_ptx and ptx]


def ptx_architecture(variant: Variant) -> int:
    """Return the compute capability that a variant's PTX is compiled for."""
    return FLOAT8_PTX_ARCHITECTURE if variant.kernel == decode_attention.FLOAT8_KERNEL else PTX_ARCHITECTURE


def cache_keys(items: Iterable[Item]) -> Iterator[str]:
    """Yield a hash of all that each item's compiled code depends on: sources, Triton's version, variant, architecture.

    Raises:
        LucidError: Triton is not installed.
    """
    triton = triton_version()
    source_digest = hashlib.sha256()
    for source in SOURCES:
        source_digest.update((PLUGINS / source).read_bytes())
    for variant, arch in items:
        digest = source_digest.copy()
        digest.update(json.dumps([triton, asdict(variant), arch], sort_keys=True).encode())
        yield digest.hexdigest()


def triton_version() -> str:
    """Return the installed version of Triton; LucidError if it is not installed."""
    try:
        return version("triton")
    except PackageNotFoundError:
        raise missing_extra("triton", "kernels", "compile the GPU kernels") from None


def compile_all(work: list[Item], jobs: int) -> Iterator[tuple[Item, list[CompiledKernel]]]:
    """Compile items in ``jobs`` separate processes and yield each with its result, as they finish."""
    if not work:
        return
    with compilers(min(jobs, len(work))) as pool:
        futures = {pool.submit(compile_variant, *item): item for item in work}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def compilers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of compiling processes, which start on first use.

    They and their tools write only into a temporary folder, which is removed at the end.

    Raises:
        OSError: The folder or the pool cannot be created.
    """
    with (
        tempfile.TemporaryDirectory(prefix="lucid-triton-") as scratch,
        ProcessPoolExecutor(jobs, get_context("spawn"), start_compiler, (scratch,)) as pool,
    ):
        yield pool


def start_compiler(scratch: str) -> None:
    """Set the environment variables that Triton reads on import, and make this process exit with its parent.

    Args:
        scratch: Folder for Triton's cache and for temporary files.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TMPDIR"] = tempfile.tempdir = scratch
    os.environ["TRITON_CACHE_DIR"] = scratch
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
    os.environ.pop("TRITON_INTERPRET", None)


def _end_with_parent() -> None:
    """Exit with the parent; else this process would wait forever on a queue whose other end it also holds open."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def compile_variant(variant: Variant, arch: int) -> list[CompiledKernel]:
    """Compile one variant in this process to machine code and, if ``arch`` is its :func:`ptx_architecture`, to PTX.

    Raises:
        LucidError: Triton fails, or the kernel needs Triton's scratch memory or too much shared memory.
    """
    compiled = compile_with_triton(variant, arch)
    metadata = compiled.metadata
    if metadata.global_scratch_size or metadata.profile_scratch_size:
        raise LucidError(f"{variant.name}: Triton needs scratch memory, which the plugin does not provide.")
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


def compile_with_triton(variant: Variant, arch: int) -> Any:
    """Compile a variant in this process and return Triton's result, whose ``asm`` has PTX and machine code by name.

    Raises:
        LucidError: Triton fails.
    """
    function = kernel_functions("compile the GPU kernels")[variant.kernel]
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {name: _type(name, variant) for name in argument_names(variant)}
    constants = {**dict(variant.constants), **dict.fromkeys(_absent(variant))}
    signature = {argument: types.get(argument, "constexpr") for argument in function.arg_names}
    # Pointers are multiples of 16: TensorRT and PyTorch align buffers to 256 bytes. Other arguments have any value.
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, each in enumerate(function.arg_names)
        if each.startswith("p_") and each in types
    }
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages, "enable_fp_fusion": True}
    source = ASTSource(function, signature, constants, aligned)
    try:
        return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    except Exception as error:
        raise LucidError(f"Triton failed to compile {variant.name} for sm_{arch}: {error}") from error


def argument_names(variant: Variant) -> list[str]:
    """Return the names of a variant's launch arguments, in order."""
    function = kernel_functions("compile the GPU kernels")[variant.kernel]
    return [name for name in function.arg_names if name not in (*dict(variant.constants), *_absent(variant))]


def _absent(variant: Variant) -> tuple[str, ...]:
    """Return the arguments of the Triton function that are None in a variant."""
    if variant.kernel == "precondition_kernel" and "INT8" not in dict(variant.constants):
        return ("INT8",)
    if variant.kernel == "key_norms_kernel" and variant.dtype != "float32":
        return ("p_y_past",)
    if variant.kernel in ("decode_split_kernel", decode_attention.FLOAT8_KERNEL):
        scales = _SCALES if variant.kernel == "decode_split_kernel" else ()
        return (*scales, *({"ADD_SQUARES", "Y_BY_FLOAT32", "PARTS", "PAIRS"} - set(dict(variant.constants))))
    return ()


def _type(argument: str, variant: Variant) -> str:
    """Return Triton's type of an argument by its name: p_… is a pointer, n_… and width_units are i32, others fp32."""
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
