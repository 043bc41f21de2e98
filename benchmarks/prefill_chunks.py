"""What a prompt takes, in time and memory, by how many of its tokens run at once.

The medium model with the library of kernels (``lucid-deploy plugin build --target onnxruntime``), with weights in
float32 and in 4 bits, and with the functions in its graphs. Every prompt has a process of its own, whose peak it is.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import click
from common import SHAPES, in_process, write_random_checkpoint, write_result

from lucid_deploy.export import ExportOptions, export
from lucid_deploy.export.quantize.options import QuantizeOptions

MIB = 2**20
WEIGHTS = {"float32": ExportOptions(), "int4": ExportOptions(quantize=QuantizeOptions("int4"))}
VARIANTS = (("float32", "library"), ("int4", "library"), ("float32", "functions"))


@click.command()
@click.option("--lengths", default="2048,8192", show_default=True, help="Tokens of a prompt, with commas.")
@click.option("--chunks", default="256,512,1024,2048", show_default=True, help="Tokens that run at once.")
@click.option("--rounds", default=3, show_default=True, help="Rounds, in which all take turns.")
@click.option("--shape", type=click.Choice(list(SHAPES)), default="medium", show_default=True, help="Of the model.")
@click.option("--write/--no-write", default=True, help="Whether to write benchmarks/results/prefill_chunks.json.")
def main(lengths: str, chunks: str, rounds: int, shape: str, write: bool) -> None:
    """Run prompts at once and in pieces."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = write_random_checkpoint(Path(scratch) / "checkpoint", shape)
        for name, options in WEIGHTS.items():
            export(checkpoint, Path(scratch) / name, options)
        for weights, kernels in VARIANTS:
            for length in map(int, lengths.split(",")):
                sizes = [*(chunk for chunk in map(int, chunks.split(",")) if chunk < length), None]
                call = f"prefill({str(Path(scratch) / weights)!r}, {length}, {{}}, {kernels!r})"
                runs = [
                    {size: in_process("long_context_worker", call.format(size)) for size in sizes}
                    for _ in range(rounds)
                ]
                for size in sizes:
                    case = {"weights": weights, "kernels": kernels, "length": length, "chunk": size}
                    found.append({**case, **summary(runs, size)})
                    print(line(found[-1]), flush=True)
    if write:
        write_result("prefill_chunks", {"rounds": rounds, "shape": shape, "runs": found})


def summary(runs: list[dict[int | None, dict[str, Any]]], size: int | None) -> dict[str, Any]:
    """Return a size's seconds, peaks in MiB and, by rounds, its time over that of the whole prompt at once."""
    over = [run[size]["seconds"] / run[None]["seconds"] for run in runs]
    return {
        "seconds": statistics.median(run[size]["seconds"] for run in runs),
        "over_whole": {"median": statistics.median(over), "least": min(over), "most": max(over)},
        "peak_mib": statistics.median(run[size]["peak"] for run in runs) / MIB,
        "peak_decoding_mib": statistics.median(run[size]["peak_decoding"] for run in runs) / MIB,
        "opened_mib": statistics.median(run[size]["idle"] for run in runs) / MIB,
    }


def line(run: dict[str, Any]) -> str:
    """Return a result as a line of text."""
    over = run["over_whole"]
    return (
        f"{run['weights']}, {run['kernels']}, {run['length']} tokens, {run['chunk'] or 'all'} at once: "
        f"{run['seconds']:.2f} s, {over['median']:.3f} ({over['least']:.3f} to {over['most']:.3f}) of all at once, "
        f"{run['peak_mib']:.0f} MiB, {run['peak_decoding_mib']:.0f} MiB while 8 tokens are decoded"
    )


if __name__ == "__main__":
    main()
