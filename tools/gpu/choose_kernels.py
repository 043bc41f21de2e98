"""Choose an operator's constants by the models of its loop, with no GPU, and write them into its tuned.json.

    python -m tools.gpu.choose_kernels --operator precondition --arch 90 --dtype float32 --width 64

Every candidate is compiled (or taken from the cache of ``plugin build``), which takes seconds for each. The file says
under "chosen_by_model" which entries were chosen so. What ``tune_kernels.py`` measured on a GPU is left as it is, and
so is what stands under "kept", with the reason.
"""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path

import click

from lucid_deploy.plugins.hosts.triton.aot import ARCHITECTURES
from lucid_deploy.plugins.shared.plan import PADDED_WIDTHS, Choice
from lucid_deploy.plugins.table import FLOATS
from tools.gpu.model_choice import OPERATORS, Modelled, best, model, others_spill
from tools.gpu.tune_kernels import format_tuned


@click.command()
@click.option("--operator", type=click.Choice(list(OPERATORS)), default="precondition", show_default=True)
@click.option("--arch", "archs", default=",".join(map(str, ARCHITECTURES)), show_default=True, help="With commas.")
@click.option("--dtype", "dtypes", default=",".join(FLOATS), show_default=True)
@click.option("--width", "widths", default=",".join(map(str, PADDED_WIDTHS)), show_default=True, help="Padded.")
@click.option("--output", type=click.Path(path_type=Path), show_default="the operator's tuned.json")
def main(operator: str, archs: str, dtypes: str, widths: str, output: Path | None) -> None:
    """Choose, print what was compared, and write after every entry, so that a stop loses nothing."""
    output = output or OPERATORS[operator].tuned
    for arch, dtype, width in itertools.product(archs.split(","), dtypes.split(","), map(int, widths.split(","))):
        tuned = json.loads(output.read_text(encoding="utf-8"))
        if arch in tuned["measured_on"]:
            click.echo(f"{arch}: measured on {tuned['measured_on'][arch]}, left as it is")
            continue
        name = f"{arch} {dtype} {width}"
        if name in tuned["kept"]:
            click.echo(f"{name}: kept as it is: {tuned['kept'][name]}")
            continue
        click.echo(name)
        of = (operator, int(arch), dtype, width)
        found = model(*of, progress=lambda each: click.echo(f"    {line(each)}"))
        chosen = best(found, functools.partial(others_spill, *of)).choice
        click.echo(f"  {tile(chosen)}")
        entry = [vars(chosen)[column] for column in tuned["columns"]]
        tuned["choices"].setdefault(arch, {}).setdefault(dtype, {})[str(width)] = entry
        names = {*tuned["chosen_by_model"], name}
        tuned["chosen_by_model"] = sorted(names, key=lambda each: (int(each.split()[0]), each))
        output.write_text(format_tuned(tuned), encoding="utf-8")


def tile(choice: Choice) -> str:
    """Return a candidate's constants."""
    size = f"{choice.block_m} × {choice.block_n}" if choice.block_m else f"{choice.block_n} tokens"
    text = f"{size}, {choice.num_warps} warps, {choice.num_stages} stages"
    text = f"{text}, {choice.chunk} columns at once" if choice.chunk else text
    return f"{text}, E in bfloat16 and int8" if choice.int8 else text


def line(modelled: Modelled) -> str:
    """Return what the models say of a candidate."""
    report = modelled.report
    if report is None:
        return f"{tile(modelled.choice)}: {modelled.reason}"
    cycles = "unknown" if modelled.cycles is None else f"{modelled.cycles:.0f}"
    one_pass = "unknown" if report.cycles is None else f"{report.cycles:.0f} by {report.bound_by}"
    return f"{tile(modelled.choice)}: {cycles}, of one pass {one_pass}, {report.loop_spills} spills in the loop"


if __name__ == "__main__":
    main()
