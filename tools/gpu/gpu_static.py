"""Read the machine code of the shipped GPU kernels, with no GPU: registers, shared memory, spills.

Every variant is compiled (or taken from the cache of ``plugin build``) and disassembled with the tools of Triton's
package. The exit status is 1 if a hot loop spills registers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from lucid_deploy.cli._console import progress
from lucid_deploy.plugins.hosts.triton import aot
from lucid_deploy.plugins.hosts.triton.compiled_kernel import CompiledKernel
from lucid_deploy.plugins.shared.plan import Variant
from tools.gpu.machine_code import disassemble, spills

WIDTH = 120  # of the table


@dataclass(frozen=True)
class KernelReport:
    """One compiled kernel; the fields are the table's columns."""

    arch: int  # compute capability
    variant: str  # its name
    warps: int  # of a program
    registers: int  # per thread
    stack: int  # bytes of local memory per thread
    shared: int  # bytes of shared memory of a program
    loop: int  # instructions of the hot loop
    spills: int  # loads from and stores to local memory, in all
    in_loop: int  # of these in the hot loop
    around_it: int  # of these in the largest loop around the hot one, such as the solve's, which waits


def describe(kernel: CompiledKernel) -> KernelReport:
    """Disassemble a kernel.

    Raises:
        LucidError: As :func:`~tools.gpu.machine_code.disassemble`.
    """
    code = disassemble(kernel.image, kernel.entry)
    return KernelReport(
        arch=kernel.arch,
        variant=kernel.variant,
        warps=kernel.num_warps,
        registers=code.registers,
        stack=code.stack,
        shared=kernel.shared_bytes,
        loop=len(code.hot_loop),
        spills=code.spills,
        in_loop=spills(code.hot_loop),
        around_it=spills(code.enclosing),
    )


def report(
    archs: Sequence[int],
    select: Callable[[Variant], bool],
    update: aot.Progress = lambda done, total, name: None,
    cache: Path | None = None,
    jobs: int = aot.JOBS,
) -> list[KernelReport]:
    """Compile and describe the variants that are shipped; arguments and errors are those of ``compile_kernels``."""
    kernels = aot.compile_kernels(archs, ptx=False, select=select, cache=cache, jobs=jobs, progress=update)
    found = []
    with ThreadPoolExecutor(jobs) as pool:  # threads suffice: each waits for a disassembler's process
        for kernel, each in zip(kernels, pool.map(describe, kernels), strict=True):
            found.append(each)
            update(len(found), len(kernels), kernel.variant)
    return found


@click.command()
@click.option("--arch", "archs", default=",".join(map(str, aot.ARCHITECTURES)), show_default=True, help="With commas.")
@click.option("--kernel", default="", help="Only variants with these prefixes, such as decode_split; with commas.")
@click.option("--width", "widths", default="32,64,128,256", show_default=True, help="Padded head widths, with commas.")
@click.option("--jobs", default=aot.JOBS, show_default=True, help="Processes that compile at the same time.")
def main(archs: str, kernel: str, widths: str, jobs: int) -> None:
    """Print a row for each compiled variant; exit with 1 if a hot loop spills."""
    wanted = {int(width) for width in widths.split(",")}
    with progress("Compiling") as update:
        found = report(
            [int(arch) for arch in archs.split(",")],
            lambda variant: variant.name.startswith(tuple(kernel.split(","))) and variant.padded_width in wanted,
            lambda done, total, name: update(f"Compiling and reading {name}", done, total),
            jobs=jobs,
        )
    table = Table(*(name.replace("_", " ") for name in KernelReport.__dataclass_fields__))
    for each in found:
        table.add_row(*map(str, vars(each).values()))
    Console(width=WIDTH).print(table)
    spilling = sum(each.in_loop > 0 for each in found)
    print(f"{spilling} of {len(found)} kernels spill in their hot loop.")
    sys.exit(int(spilling > 0))


if __name__ == "__main__":
    main()
