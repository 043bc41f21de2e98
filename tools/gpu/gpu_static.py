"""Read the machine code of the shipped GPU kernels, with no GPU: registers, spills, occupancy, modelled cycles.

Every variant is compiled (or taken from the cache of ``plugin build``), disassembled with the tools of Triton's
package, and its hot loop counted by the model of ``issue_model.py``. Beside each variant of the
solve stands plain causal attention in the same tile, and decoding's cycles are given over what memory takes for its
tile. Rows of the JSON file say which version of Triton compiled them, and have a key of what was compiled, which tests
compare. ``make gpu-check`` measures; this only compares compiled code.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from lucid_deploy.cli._console import progress
from lucid_deploy.plugins.hosts.triton.aot import ARCHITECTURES, JOBS, triton_version
from tools.gpu.static_report import KernelReport, over_memory, ratios, report

RESULT = Path(__file__).with_name("gpu-static.json")
WIDTH = 170  # of the table


@click.command()
@click.option("--arch", "archs", default=",".join(map(str, ARCHITECTURES)), show_default=True, help="With commas.")
@click.option("--kernel", default="", help="Only variants whose names begin so, such as decode_split; with commas.")
@click.option("--width", "widths", default="32,64,128,256", show_default=True, help="Padded head widths.")
@click.option("--jobs", default=JOBS, show_default=True, help="Processes that compile at the same time.")
@click.option("--json", "target", type=click.Path(path_type=Path), default=RESULT)
def main(archs: str, kernel: str, widths: str, jobs: int, target: Path) -> None:
    """Print the report and write it as JSON."""
    chosen, wanted = [int(arch) for arch in archs.split(",")], {int(width) for width in widths.split(",")}
    with progress("Compiling") as update:
        found = report(
            chosen,
            lambda variant: variant.name.startswith(tuple(kernel.split(","))) and variant.padded_width in wanted,
            lambda done, total, name: update(f"Compiling and reading {name}", done, total),
            jobs=jobs,
        )
    over = ratios(found)
    Console(width=WIDTH).print(_table(found, over))
    target.parent.mkdir(exist_ok=True)
    triton = triton_version()
    rows = [
        {
            **each.as_json(),
            "triton": triton,
            "over_attention": over.get((each.arch, each.variant)),
            "over_memory": over_memory(each),
        }
        for each in found
    ]
    lines = ",\n".join(map(json.dumps, rows))  # a line for each kernel
    target.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def _table(found: list[KernelReport], over: dict[tuple[int, str], float]) -> Table:
    table = Table(title="Cycles: of one pass through the hot loop, less is better; a model, no measurement")
    sizes = ("warps", "registers", "stack", "shared", "resident")
    for name in (
        "arch",
        "variant",
        *sizes,
        "spills",
        "in loop",
        "around it",
        "loop",
        "cycles",
        "by",
        "ratio",
        "of memory",
    ):
        table.add_column(name, justify="left" if name in ("variant", "by") else "right")
    for each in found:
        ratio = over.get((each.arch, each.variant))
        table.add_row(
            *map(str, (each.arch, each.variant, each.num_warps, each.registers)),
            *map(str, (each.stack, each.shared, each.resident_warps)),
            *map(str, (each.spills, each.loop_spills, each.enclosing_spills)),
            *map(str, (each.loop, "unknown" if each.cycles is None else round(each.cycles))),
            each.bound_by,
            "" if ratio is None else f"{ratio:.2f}",
            ", ".join(f"{share:.2f} {card}" for card, share in over_memory(each).items()),
        )
    return table


if __name__ == "__main__":
    main()
