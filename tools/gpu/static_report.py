"""What compiled kernels tell without a GPU: registers, spills, occupancy, and cycles by the issue model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lucid_deploy.plugins.hosts.triton import aot
from lucid_deploy.plugins.hosts.triton.compiled_kernel import CompiledKernel, default_cache, load, save
from lucid_deploy.plugins.precondition import plan as precondition
from lucid_deploy.plugins.shared.plan import FLOAT32_BYTES, Variant
from tools.gpu.issue_model import cycles, occupancy
from tools.gpu.machine_code import disassemble, spills
from tools.gpu.memory_model import CARDS, memory_cycles

_SOLVE = "precondition_kernel"
_PREFIX = "precondition_"  # of the solve's variants
_DECODING = re.compile(r"decode_split_(float8_)?(b?float\d+)_")
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_WARPS = (4, 8)  # of the yardstick
KEY_DIGITS = 16  # of a report's keys
_YARDSTICK_SOURCES = ("shared/kernel.py", str(Path(__file__).with_name("yardstick.py")))


@dataclass(frozen=True)
class KernelReport:
    """One compiled kernel."""

    variant: str  # its name
    arch: int  # compute capability
    constants: dict[str, int]  # its compile-time constants, of which BLOCK_ are sizes of tiles
    num_warps: int  # warps of a program
    registers: int  # per thread
    stack: int  # bytes of local memory per thread
    spills: int  # loads from and stores to local memory, in all
    shared: int  # bytes of shared memory of a program
    resident_warps: int  # warps on a multiprocessor at once
    loop: int  # instructions of the hot loop
    loop_spills: int  # loads from and stores to local memory in it
    enclosing: int  # instructions of the loops around it, such as the solve's, which waits; 0: there are none
    enclosing_spills: int  # loads from and stores to local memory in these
    units: dict[str, float]  # cycles of one pass through it by unit, see issue_model
    cycles: float | None  # of the busiest unit; None where the model does not know a tensor core's instruction
    bound_by: str  # the busiest unit
    key: str = ""  # what it was compiled from, see report_keys; empty: that was not asked for

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def describe(kernel: CompiledKernel) -> KernelReport:
    """Disassemble a kernel.

    Raises:
        LucidError: As :func:`~tools.gpu.machine_code.disassemble`.
    """
    code = disassemble(kernel.image, kernel.entry)
    loop = code.hot_loop
    taken = cycles(loop, kernel.arch, kernel.num_warps)
    return KernelReport(
        variant=kernel.variant,
        arch=kernel.arch,
        constants=kernel.constants,
        num_warps=kernel.num_warps,
        registers=code.registers,
        stack=code.stack,
        spills=code.spills,
        shared=kernel.shared_bytes,
        resident_warps=occupancy(kernel.arch, code.registers, kernel.shared_bytes, kernel.num_warps),
        loop=len(loop),
        loop_spills=spills(loop),
        enclosing=len(code.enclosing),
        enclosing_spills=spills(code.enclosing),
        units={name: round(value, 1) for name, value in taken.units.items()},
        cycles=round(taken.total, 1) if taken.is_known else None,
        bound_by=taken.bound_by,
    )


def report(
    archs: Sequence[int],
    select: Callable[[Variant], bool] = lambda variant: True,
    progress: aot.Progress = lambda done, total, name: None,
    cache: Path | None = None,
    jobs: int = aot.JOBS,
) -> list[KernelReport]:
    """Compile and describe every variant that is shipped, and plain causal attention beside each variant of the solve.

    Args:
        archs: Compute capabilities, 90 for 9.0.
        select: Which variants.
        progress: As for :func:`~lucid_deploy.plugins.hosts.triton.aot.compile_kernels`; then once more from the
            beginning, for each kernel that was read, and for the attention beside them.
        cache: As there.
        jobs: Processes that compile at the same time, and threads that read then.

    Raises:
        LucidError: As there.
    """
    kernels = aot.compile_kernels(archs, ptx=False, select=select, cache=cache, jobs=jobs, progress=progress)
    solves = [(variant, arch) for arch in archs for variant in _solves(arch) if select(variant)]
    keys = {arch: report_keys(arch) for arch in archs}
    found = []
    with ThreadPoolExecutor(jobs) as pool:  # which wait for the disassembler, a process of its own
        for kernel, each in zip(kernels, pool.map(describe, kernels), strict=True):
            found.append(each)
            progress(len(found), len(kernels), kernel.variant)
    found += _yardsticks(solves, default_cache() if cache is None else cache, jobs, progress)
    return [replace(each, key=keys[each.arch][each.variant, each.num_warps]) for each in found]


def report_keys(arch: int, triton: str | None = None) -> dict[tuple[str, int], str]:
    """Return what tells from which sources and with which options the kernels of a report are compiled.

    That is the first digits of :func:`~lucid_deploy.plugins.hosts.triton.aot.cache_key`, a hash of the kernels'
    sources, Triton's version, the constants, warps and stages, and the compute capability. Nothing is compiled for it.

    Args:
        arch: Compute capability.
        triton: Version of Triton; None: the one that is installed.

    Returns:
        Keys by variant and number of warps: of all variants, and of the yardsticks with each number that is tried.
    """
    variants = {(each.name, each.num_warps): each for each in aot.variants(arch)}
    plain = {(_yardstick_name(each.name), warps): _yardstick(each, warps) for each in _solves(arch) for warps in _WARPS}
    found = {}
    for named, sources in ((variants, None), (plain, _YARDSTICK_SOURCES)):
        keys = aot.cache_keys([(variant, arch) for variant in named.values()], sources, triton)
        found.update({name: key[:KEY_DIGITS] for name, key in zip(named, keys, strict=True)})
    return found


def ratios(reports: Sequence[KernelReport]) -> dict[tuple[int, str], float]:
    """Return cycles of the solve's loop over those of its yardstick's, by (compute capability, variant)."""
    found = {(each.arch, each.variant): each.cycles for each in reports}
    return {
        (arch, name): taken / plain
        for (arch, name), taken in found.items()
        if taken and name.startswith(_PREFIX) and (plain := found.get((arch, _yardstick_name(name))))
    }


def tile_bytes(report: KernelReport) -> int | None:
    """Return the bytes of K and Y that one pass through decoding's loop reads; None of other kernels."""
    if not (found := _DECODING.match(report.variant)):
        return None
    width = report.constants["BLOCK_D"]
    row = width + FLOAT32_BYTES if found[1] else width * _BYTES[found[2]]  # E4M3 has a scale for each row
    return 2 * report.constants["BLOCK_N"] * row


def over_memory(report: KernelReport) -> dict[str, float]:
    """Return the cycles of decoding's loop over what memory takes for its tile, by card; {} of other kernels."""
    n_bytes = tile_bytes(report)
    if n_bytes is None or report.cycles is None:
        return {}
    return {card.name: report.cycles / memory_cycles(n_bytes, card) for card in CARDS[report.arch]}


def _yardsticks(
    solves: Sequence[tuple[Variant, int]], cache: Path, jobs: int, progress: aot.Progress
) -> Iterator[KernelReport]:
    """Describe plain causal attention in the tile of each solve, with the number of warps that suits it best.

    It is compiled in processes of their own, which Triton's settings stay in, unless the cache has it.
    """
    work = [(replace(solve, num_warps=warps), arch) for solve, arch in solves for warps in _WARPS]
    plain = [(_yardstick(solve, solve.num_warps), arch) for solve, arch in work]
    paths = {item: cache / key for item, key in zip(work, aot.cache_keys(plain, _YARDSTICK_SOURCES), strict=True)}
    found = {item: kernels for item, path in paths.items() if (kernels := load(path))}
    missing = [item for item in work if item not in found]
    for done, (item, kernels) in enumerate(aot.compile_all(missing, jobs, compile_yardstick), start=1):
        save(paths[item], kernels)
        found[item] = kernels
        progress(done, len(missing), kernels[0].variant)
    for solve, arch in solves:
        tried = [describe(found[replace(solve, num_warps=warps), arch][0]) for warps in _WARPS]
        yield min(tried, key=lambda each: (each.cycles is None, each.cycles or each.units["issue"]))


def compile_yardstick(solve: Variant, arch: int) -> list[CompiledKernel]:
    """Compile plain causal attention, with the tiles, warps and stages of a variant of the solve, in this process.

    Raises:
        LucidError: Triton fails, with its message.
    """
    from tools.gpu.yardstick import causal_attention_kernel as function

    constants = {name: value for name, value in solve.constants if name in function.arg_names}
    types = {name: _type(name, solve.dtype) for name in function.arg_names if name not in constants}
    name = _yardstick_name(solve.name)
    compiled = aot.compile_function(function, types, constants, arch, (solve.num_warps, solve.num_stages), name)
    kernel = CompiledKernel(
        variant=name,
        arch=arch,
        is_ptx=False,
        entry=compiled.metadata.name,
        shared_bytes=compiled.metadata.shared,
        num_warps=solve.num_warps,
        constants=constants,
        arguments=list(types),
        image=compiled.asm["cubin"],
    )
    return [kernel]


def _solves(arch: int) -> list[Variant]:
    return [variant for variant in precondition.variants(arch) if variant.kernel == _SOLVE]


def _yardstick(solve: Variant, warps: int) -> Variant:
    return replace(solve, kernel="causal_attention_kernel", num_warps=warps)


def _yardstick_name(solve: str) -> str:
    return solve.replace(_PREFIX, "causal_attention_", 1)


def _type(argument: str, dtype: str) -> str:
    if argument.startswith("p_"):
        return aot.POINTER_TYPES[dtype]
    return "fp32" if argument == "scale" else "i32"
