"""The solver comparison of docs/evaluation.md: ``bench --solvers`` on the bundled model, kept as a result."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import torch
from common import write_result

from lucid_deploy.bench.solver_comparison import compare_solvers
from lucid_deploy.export import export


@click.command(help=__doc__)
@click.option("--lengths", default="64,256,500", show_default=True, help="Tokens of the texts.")
@click.option("--questions", default=40, show_default=True, help="Of each length.")
@click.option("--rounds", default=5, show_default=True, help="Runs that are timed.")
@click.option("--write/--no-write", default=True, help="Write benchmarks/results/solvers.json.")
def main(lengths: str, questions: int, rounds: int, write: bool) -> None:
    """Measure every way in every type at every length."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        artifact = export("demo", Path(scratch) / "artifact")
        rows = compare_solvers(artifact, [int(each) for each in lengths.split(",")], questions, rounds)
    for row in rows:
        shown = "none" if row["error"] is None else f"{row['error']:.1e}"
        right = row["needles"]["right"]
        print(
            f"{row['length']:5d} {row['solver']:13s}{row['dtype']:9s} error {shown} {row['milliseconds']:8.2f} ms, "
            f"best token as in float64 {100 * row['same_best']:.1f} %, {right} of {questions} right"
        )
    if write:
        write_result("solvers", {"questions": questions, "rows": rows})


if __name__ == "__main__":
    main()
