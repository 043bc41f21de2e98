"""A model with three layers of the gated delta rule per LUCID layer, beside LUCID or standard attention throughout.

All have hidden 1024, 8 layers, 16 heads on 4 key/value heads of width 64 and nearly the same number of parameters: a
delta layer has 8 heads with keys and values of width 64. Each is compared with PyTorch before anything is timed. Then
they take turns, each in a process of its own: prefill at 2048 and 8192 tokens, decode at 8192 tokens of context. Last,
each decodes alone at 131,072 tokens, and its peak memory is compared with what `lucid-deploy inspect` predicts. Kernels
are those that `lucid-deploy run` would choose; `--kernels functions` uses the function bodies in the graphs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
from common import in_process, write_random_checkpoint, write_result

from lucid_deploy.artifact import WEIGHTS, Artifact, open_artifact
from lucid_deploy.bench.contenders import Contender
from lucid_deploy.bench.report import paired_ratio
from lucid_deploy.bench.runner import Measurement, Plan, run_plan
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.runtimes.inspection import memory_needed
from lucid_deploy.runtimes.options import KERNELS, RuntimeOptions

MIB = 2**20
_ALIKE: dict[str, Any] = {"layer_kinds": None, "layer_settings": None}  # all layers are what attention_type says
MODELS: dict[str, dict[str, Any]] = {  # changes to the shape
    "hybrid": {},
    "lucid": _ALIKE,
    "standard": {**_ALIKE, "attention_type": "llama"},
}


def export_all(root: Path, shape: str, cache: str) -> dict[str, Artifact]:
    """Export the three models with random weights."""
    found = {}
    for name, changes in MODELS.items():
        source = write_random_checkpoint(root / f"{name}-checkpoint", shape, changes=changes)
        found[name] = open_artifact(export(source, root / name, ExportOptions(cache=cache)).directory)
    return found


def check(contenders: list[Contender]) -> None:
    """Compare each model with PyTorch on the same weights; raise CheckFailed where they disagree."""
    for contender in contenders:
        torch = Contender(f"{contender.name} in PyTorch", "torch-blocked", contender.artifact, contender.options)
        run_plan([contender, torch], Plan(lengths=(8,), stages=("decode",), repeats=1, steps=1), "float32")


def rows(measurements: list[Measurement]) -> list[dict[str, Any]]:
    """Return every measurement, with the ratio of its time to the hybrid's at this stage and length, by round."""
    first = {(m.stage, m.length): m for m in measurements if m.contender == "hybrid"}
    return [
        {
            "model": m.contender,
            "stage": m.stage,
            "length": m.length,
            "median_ms": 1e3 * m.median,
            "seconds": m.seconds,
            "over_hybrid": paired_ratio(m.seconds, first[m.stage, m.length].seconds),
        }
        for m in measurements
    ]


def memory(artifact: Artifact, context: int) -> dict[str, float]:
    """Return predicted and measured peak memory of decoding at a context, in MiB, and seconds a step."""
    run = in_process("long_context_worker", f"decode({str(artifact.directory)!r}, {context})")
    needed = memory_needed(artifact, 1, context)
    return {
        "predicted_mib": needed["total"] / MIB,
        "measured_mib": run["peak"] / MIB,
        "cache_mib": needed["cache"] / MIB,
        "states_mib": needed["states"] / MIB,
        "seconds_per_token": run["seconds"],
    }


def lengths(text: str) -> tuple[int, ...]:
    """Return the whole numbers in a text, which commas separate."""
    return tuple(int(word) for word in text.split(","))


@click.command(help=__doc__)
@click.option("--shape", type=click.Choice(["hybrid", "small-hybrid"]), default="hybrid", show_default=True)
@click.option("--cache", type=click.Choice(["growing", "static"]), default="growing", show_default=True)
@click.option("--prefill", default="2048,8192", show_default=True, help="Prompt lengths, with commas.")
@click.option("--chunk", default=2048, show_default=True, help="Tokens of a prefill that run at once.")
@click.option("--decode", default="8192", show_default=True, help="Contexts to decode at, with commas.")
@click.option("--context", default=131072, show_default=True, help="Tokens of context to measure memory at.")
@click.option("--repeats", default=7, show_default=True, help="Rounds that count.")
@click.option("--threads", default=2, show_default=True)
@click.option("--kernels", type=click.Choice(KERNELS), default="auto", show_default=True)
@click.option("--write/--no-write", default=True, help="Whether to write benchmarks/results/hybrid.json.")
def main(
    shape: str,
    cache: str,
    prefill: str,
    chunk: int,
    decode: str,
    context: int,
    repeats: int,
    threads: int,
    kernels: str,
    write: bool,
) -> None:
    """Measure, print, and write the results."""
    with tempfile.TemporaryDirectory() as scratch:
        artifacts = export_all(Path(scratch), shape, cache)
        options = RuntimeOptions(threads=threads, kernels=kernels)
        contenders = [Contender(name, "artifact", str(item.directory), options) for name, item in artifacts.items()]
        check(contenders)
        timed = [
            row
            for stage, where in (("prefill", prefill), ("decode", decode))
            for row in rows(run_plan(contenders, Plan(lengths(where), (1,), (stage,), repeats, chunk), "float32")[0])
        ]
        peaks = {name: memory(item, context) for name, item in artifacts.items()}
        weights = {name: item.manifest.files[WEIGHTS]["size"] / MIB for name, item in artifacts.items()}
    for row in timed:
        ratio = row["over_hybrid"]["median"]
        print(
            f"{row['stage']:8s} {row['length']:6d}  {row['model']:9s} {row['median_ms']:10.2f} ms  {ratio:5.2f} times"
        )
    for name, found in peaks.items():
        print(
            f"{context} tokens  {name:9s} predicted {found['predicted_mib']:8.0f} MiB, measured "
            f"{found['measured_mib']:8.0f}, cache {found['cache_mib']:.1f}, states {found['states_mib']:.2f}"
        )
    settings = {"shape": shape, "cache": cache, "chunk": chunk, "threads": threads, "kernels": kernels}
    if write:
        facts = {"settings": settings, "weights_mib": weights, "timed": timed, "context": context, "memory": peaks}
        write_result("hybrid", facts)


if __name__ == "__main__":
    main()
