"""What the functions in exported graphs cost beside standard attention, without the library of kernels.

The baseline is the same shape with standard attention, exported by the same toolkit and run by the same onnxruntime.
Rounds are interleaved, every artifact runs in a process of its own, and `--processes` begins anew with fresh ones,
since the memory that a process happens to get makes a difference.
"""

from __future__ import annotations

import statistics
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from common import SHAPES, write_result
from medium_model import export_all

from lucid_deploy.artifact import open_artifact
from lucid_deploy.bench import Plan, run_plan
from lucid_deploy.bench.contenders import Contender
from lucid_deploy.runtimes.options import RuntimeOptions

TARGETS = {"prefill": 1.06, "decode": 1.10}
STANDARD = "standard"


@dataclass(frozen=True)
class Ratio:
    """Times of an artifact over those of standard attention, round by round."""

    name: str
    cache: str
    stage: str
    length: int
    rounds: tuple[float, ...]

    def line(self) -> str:
        """Return a line for people: median and quartiles, beside the target."""
        low, middle, high = quartiles(self.rounds)
        return (
            f"{self.name}, {self.stage} at {self.length}, {self.cache}: {middle:.3f} ({low:.3f} to {high:.3f}) times "
            f"standard attention, target {TARGETS[self.stage]:.2f}"
        )


def quartiles(values: tuple[float, ...]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile; of one value three times that."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def race(paths: dict[str, Path], cache: str, plan: Plan, threads: int) -> list[Ratio]:
    """Measure artifacts of one kind of cache with the functions of their graphs."""
    options = RuntimeOptions(kernels="functions", threads=threads)
    contenders = [Contender(name, "artifact", str(path), options) for name, path in paths.items()]
    measured, _ = run_plan(contenders, plan, "float32")
    seconds = {(each.stage, each.length, each.contender): each.seconds for each in measured}
    return [
        Ratio(
            name,
            cache,
            stage,
            length,
            tuple(a / b for a, b in zip(times, seconds[stage, length, STANDARD], strict=True)),
        )
        for (stage, length, name), times in seconds.items()
        if name != STANDARD
    ]


def pooled(found: list[Ratio]) -> list[Ratio]:
    """Put the rounds of several processes together."""
    rounds: defaultdict[tuple[Any, ...], tuple[float, ...]] = defaultdict(tuple)
    for each in found:
        rounds[each.name, each.cache, each.stage, each.length] += each.rounds
    return [Ratio(*key, values) for key, values in rounds.items()]


def lengths(text: str) -> tuple[int, ...]:
    """Read numbers with commas between; none of an empty text."""
    return tuple(int(word) for word in text.split(",") if word)


@click.command()
@click.option("--shape", type=click.Choice(sorted(SHAPES)), default="medium", show_default=True, help="Of the model.")
@click.option("--prefill", default="4096", show_default=True, help="Prompt lengths, with commas.")
@click.option("--decode", default="2048,8192", show_default=True, help="Contexts to decode at, with commas.")
@click.option("--repeats", default=5, show_default=True, help="Rounds of a process that count.")
@click.option("--processes", default=2, show_default=True, help="How often to begin with new processes.")
@click.option("--threads", default=2, show_default=True, help="Threads of a process.")
@click.option(
    "--beside",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Another artifact of the shape, such as one that an earlier version exported; can be repeated.",
)
def main(
    shape: str, prefill: str, decode: str, repeats: int, processes: int, threads: int, beside: tuple[Path, ...]
) -> None:
    """Compare functions with standard attention."""
    found: list[Ratio] = []
    with tempfile.TemporaryDirectory() as scratch:
        artifacts = export_all(Path(scratch), shape)
        for _ in range(processes):
            for cache in ("growing", "static"):
                paths = {STANDARD: artifacts[f"standard-{cache}"], "lucid": artifacts[f"lucid-{cache}"]}
                paths |= {each.name: each for each in beside if open_artifact(each).manifest.cache == cache}
                if decode:
                    found += race(paths, cache, Plan(lengths(decode), stages=("decode",), repeats=repeats), threads)
                if prefill and cache == "growing":  # the other one's graph is the same
                    found += race(paths, cache, Plan(lengths(prefill), stages=("prefill",), repeats=repeats), threads)
    ratios = pooled(found)
    for each in ratios:
        print(each.line())
    write_result("functions", {"shape": shape, "threads": threads, "ratios": [vars(each) for each in ratios]})


if __name__ == "__main__":
    main()
