"""Count the cycles of shared memory in the GPU kernels' hot loops by running their PTX, with no GPU.

    python -m tools.ptx.count_banks --arch 90 --kernel precondition_float16_d64_u8 --instructions 5

Beside what is counted stands what the model of machine code takes for granted, which knows no addresses.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from lucid_deploy.plugins.hosts.triton import aot
from lucid_deploy.plugins.shared.plan import Variant
from tools.gpu.static_report import describe
from tools.ptx.banks import Count
from tools.ptx.launcher import Compiler, ptx_of
from tools.ptx.loops import KERNELS, accesses_of_a_pass
from tools.ptx.source import Instruction

_COLUMNS = "{:>4} {:<40} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}  {}"


@dataclass(frozen=True)
class BankReport:
    """Cycles of shared memory for one pass through a variant's loop, of all warps of a program.

    Attributes:
        arch: Compute capability.
        variant: Its name.
        tile: Its blocks, warps and stages.
        model: What the issue model takes shared memory to need for loads and stores.
        least: What the loads and stores that were run would take with no conflict.
        counted: What they take.
        copies: What asynchronous copies from global memory take beside them, which the model leaves out.
        largest: The issue model's cycles of the busiest unit.
        bound_by: That unit.
    """

    arch: int
    variant: str
    tile: str
    model: float
    least: int
    counted: int
    copies: int
    largest: float
    bound_by: str


@click.command()
@click.option("--arch", "archs", default="90", show_default=True, help="With commas.")
@click.option("--kernel", required=True, help="Variants whose names begin so, such as decode_split; with commas.")
@click.option("--width", "widths", default="32,64,128,256", show_default=True, help="Padded head widths.")
@click.option("--instructions", default=0, help="Also list so many instructions that lose most to conflicts.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Also write the rows into this file.")
def main(archs: str, kernel: str, widths: str, instructions: int, target: Path | None) -> None:
    """Print a line for each variant as it is counted."""
    names, wanted, rows = tuple(kernel.split(",")), {int(width) for width in widths.split(",")}, []
    chosen = [
        (variant, int(arch))
        for arch in archs.split(",")
        for variant in aot.variants(int(arch))
        if variant.kernel in KERNELS and variant.name.startswith(names) and variant.padded_width in wanted
    ]
    if not chosen:
        raise click.BadParameter(f"no loop's variant begins with {' or '.join(names)}", param_hint="--kernel")
    click.echo(_COLUMNS.format(*("arch", "variant", "model", "least", "counted", "copies"), "largest", "ratio", "by"))
    for report, accesses in counted(chosen):
        ratio = f"{report.counted / report.largest:.2f}"
        numbers = (round(report.model), report.least, report.counted, report.copies, round(report.largest), ratio)
        click.echo(_COLUMNS.format(report.arch, report.variant, *numbers, f"{report.bound_by} ({report.tile})"))
        for each, count in worst(accesses, instructions):
            click.echo(f"       {count.cycles} for {count.least}: {each}")
        rows.append(asdict(report))
        if target:
            target.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def counted(chosen: list[tuple[Variant, int]]) -> Iterator[tuple[BankReport, dict[Instruction, Count]]]:
    """Yield variants with compute capabilities as they are compiled and run."""
    with aot.compilers(1) as pool:

        @functools.lru_cache(maxsize=4)
        def compiler(variant: Variant, arch: int) -> tuple[str, int]:
            return pool.submit(ptx_of, variant, arch).result()

        for variant, arch in chosen:
            yield count(variant, arch, compiler)


def count(variant: Variant, arch: int, compiler: Compiler) -> tuple[BankReport, dict[Instruction, Count]]:
    """Return a variant's report, and what each instruction takes."""
    kernels = aot.compile_kernels([arch], ptx=False, select=lambda each: each == variant, jobs=1)
    model = describe(kernels[0])
    accesses = accesses_of_a_pass(variant, arch, compiler)
    copies = sum((each for instruction, each in accesses.items() if instruction.opcode.startswith("cp.")), Count())
    others = sum(accesses.values(), Count()) - copies
    report = BankReport(
        arch=arch,
        variant=variant.name,
        tile=_tile(variant),
        model=model.units["shared"],
        least=others.least,
        counted=others.cycles,
        copies=copies.cycles,
        largest=max(model.units.values()) if model.cycles is None else model.cycles,
        bound_by=model.bound_by,
    )
    return report, accesses


def worst(accesses: dict[Instruction, Count], most: int) -> list[tuple[Instruction, Count]]:
    """Return the instructions that lose most to conflicts, at most so many."""
    losing = [(each, count) for each, count in accesses.items() if count.cycles > count.least]
    return sorted(losing, key=lambda item: item[1].least - item[1].cycles)[:most]


def _tile(variant: Variant) -> str:
    constants = dict(variant.constants)
    blocks = [str(constants[name]) for name in ("BLOCK_M", "BLOCK_N") if name in constants]
    return ", ".join([" × ".join(blocks), str(variant.num_warps), str(variant.num_stages)])


if __name__ == "__main__":
    main()
