"""Choose the solve's constants by the issue-cycle model, with no GPU, and write them into its tuned.json.

    python benchmarks/choose_kernels.py --arch 90 --dtype float32 --width 64

Every candidate is compiled (or taken from the cache of ``plugin build``), which takes seconds for each. The file says
under "chosen_by_model" which entries were chosen so. What ``tune_kernels.py`` measured on a GPU is left as it is.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import click
from tune_kernels import format_tuned

from lucid_deploy.plugins.hosts.triton.aot import ARCHITECTURES
from lucid_deploy.plugins.hosts.triton.model_choice import Modelled, best, model
from lucid_deploy.plugins.precondition.plan import TUNED
from lucid_deploy.plugins.shared.plan import PADDED_WIDTHS
from lucid_deploy.plugins.table import FLOATS


@click.command()
@click.option("--arch", "archs", default=",".join(map(str, ARCHITECTURES)), show_default=True, help="With commas.")
@click.option("--dtype", "dtypes", default=",".join(FLOATS), show_default=True)
@click.option("--width", "widths", default=",".join(map(str, PADDED_WIDTHS)), show_default=True, help="Padded.")
@click.option("--output", type=click.Path(path_type=Path), default=TUNED, show_default="the operator's tuned.json")
def main(archs: str, dtypes: str, widths: str, output: Path) -> None:
    """Choose, print what was compared, and write after every entry, so that a stop loses nothing."""
    for arch, dtype, width in itertools.product(archs.split(","), dtypes.split(","), map(int, widths.split(","))):
        tuned = json.loads(output.read_text(encoding="utf-8"))
        if arch in tuned["measured_on"]:
            click.echo(f"{arch}: measured on {tuned['measured_on'][arch]}, left as it is")
            continue
        click.echo(f"{arch} {dtype} {width}")
        chosen = best(model(int(arch), dtype, width, progress=lambda each: click.echo(f"    {line(each)}"))).choice
        entry = [vars(chosen)[column] for column in tuned["columns"]]
        tuned["choices"].setdefault(arch, {}).setdefault(dtype, {})[str(width)] = entry
        names = {*tuned["chosen_by_model"], f"{arch} {dtype} {width}"}
        tuned["chosen_by_model"] = sorted(names, key=lambda name: (int(name.split()[0]), name))
        output.write_text(format_tuned(tuned), encoding="utf-8")


def line(modelled: Modelled) -> str:
    """Return what the model says of a candidate."""
    choice, report = modelled.choice, modelled.report
    tile = f"{choice.block_m} × {choice.block_n}, {choice.num_warps} warps, {choice.num_stages} stages"
    tile += f", {choice.chunk} columns at once" if choice.chunk else ""
    if report is None:
        return f"{tile}: {modelled.reason}"
    cycles = "unknown" if modelled.cycles is None else f"{modelled.cycles:.0f} by {report.bound_by}"
    return f"{tile}: {cycles}, {report.loop_spills} spills in the loop"


if __name__ == "__main__":
    main()
