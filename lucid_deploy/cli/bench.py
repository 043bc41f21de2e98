"""The command ``lucid-deploy bench``: time artifacts and baselines side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lucid_deploy.cli._command import Command
from lucid_deploy.cli._console import console_out, note, progress, show, write_results
from lucid_deploy.cli._options import NumberList, choice_option, json_option, runtime_options
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.options import KERNELS

if TYPE_CHECKING:
    from lucid_deploy.runtimes.options import RuntimeOptions


@click.command("bench", cls=Command)
@click.argument("artifacts", nargs=-1, required=True, type=click.Path())
@click.option(
    "--lengths",
    type=NumberList("512,2048"),
    default="512,2048",
    show_default=True,
    help="Tokens of prompts, and in the cache before decoding; may exceed the model's maximum.",
)
@click.option("--batches", type=NumberList("1,4"), default="1", show_default=True, help="Numbers of rows.")
@click.option("--stages", default="prefill,decode", show_default=True, help="prefill, decode, or both with a comma.")
@click.option(
    "--baseline",
    "baselines",
    type=click.Choice(["torch-dense", "torch-blocked"]),
    multiple=True,
    help="Also measure the model in PyTorch, with a dense solve or our operators. May be repeated.",
)
@runtime_options("runtime", "threads", help="What runs the artifacts; auto is onnxruntime.")
@choice_option(
    "--kernels",
    (*KERNELS, "both"),
    help="With onnxruntime: our library, the graph's functions, or both; auto: the library if built.",
)
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Rounds to measure.")
@click.option(
    "--prefill-chunk", type=click.IntRange(1), help="Prompt tokens in one call; default: 1024, or the engines' limit."
)
@json_option("results")
def command(
    artifacts: tuple[str, ...],
    lengths: tuple[int, ...],
    batches: tuple[int, ...],
    stages: str,
    baselines: tuple[str, ...],
    runtime: RuntimeOptions,
    kernels: str,
    repeats: int,
    prefill_chunk: int | None,
    json_target: str | None,
) -> None:
    """Measure prefill and decode of artifacts and baselines, side by side.

    Outputs are compared before anything is timed. Rounds are interleaved, so a machine that slows down slows all alike;
    ratios are to the first artifact, round by round.

    Example: lucid-deploy bench ./artifact --baseline torch-blocked --lengths 512,2048
    """
    from lucid_deploy.artifact import open_artifact
    from lucid_deploy.bench import Measurement, Plan, run_plan
    from lucid_deploy.bench.contenders import Contender, with_kernels
    from lucid_deploy.bench.machine import copy_bandwidth, describe_machine, load_average
    from lucid_deploy.bench.report import build_report

    load = load_average()  # before anything of ours runs
    chosen = tuple(stages.split(","))
    if not set(chosen) <= {"prefill", "decode"}:
        raise LucidError(f"--stages takes prefill, decode, or prefill,decode, not {stages!r}.")
    plan = Plan(lengths, batches, chosen, repeats, prefill_chunk)
    first = open_artifact(artifacts[0])
    longest = first.config.max_position_embeddings
    if beyond := [str(length) for length in lengths if length > longest]:
        note(
            f"Note: {', '.join(beyond)} tokens are more than the model was made for ({longest}, "
            "max_position_embeddings): they are timed here, but run needs --allow-extrapolation for such lengths."
        )
    variants = ("library", "functions") if kernels == "both" else (kernels,)
    contenders = [each for path in artifacts for each in with_kernels(Path(path).name, path, runtime, variants)]
    contenders += [Contender(name, name, str(first.directory), runtime) for name in baselines]
    names = [contender.name for contender in contenders]
    if len(set(names)) < len(names):
        raise LucidError(f"Contenders need different names; these are called {', '.join(names)}.")
    plain = first.manifest.quantization is None  # else the baselines read dequantized weights, not the artifact's file
    sources = {each.name: open_artifact(each.artifact) for each in contenders if plain or each.kind == "artifact"}
    machine = {**describe_machine(), "copy_bytes_per_second": copy_bandwidth(), "load_average_before": load}
    measurements, opened = list[Measurement](), dict[str, dict[str, Any]]()
    stopped = False

    def opening(name: str, number: int) -> None:
        note(f"Opening {name}, {number} of {len(names)}")

    with progress("Measuring", estimate=True) as update:
        try:
            run_plan(contenders, plan, first.manifest.dtype, update, measurements, opened, opening)
        except KeyboardInterrupt:
            stopped = True
    if measurements:
        _write(build_report(measurements, opened, plan, machine, sources), json_target)
    if stopped:
        if measurements:
            note("Note: the run was stopped: these are the measurements that were complete.")
        raise KeyboardInterrupt


def _write(report: dict[str, Any], json_target: str | None) -> None:
    if report["distrust"]:
        note(f"Note: do not trust these times: {'; '.join(report['distrust'])}. Measure again on a quiet machine.")
    write_results(report, json_target, lambda: _show(report))


def _show(report: dict[str, Any]) -> None:
    from lucid_deploy.bench.report import table

    console_out.print(table(report))
    for name, facts in report["opened"].items():
        show(f"{name}: {facts['numbers']}" + ("" if facts["kernels"] is None else f"; kernels: {facts['kernels']}"))
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    show(
        f"{machine['processor']}, {machine['cores']} cores, copies {machine['copy_bytes_per_second'] / 1e9:.1f} GB/s "
        f"(read + write); {versions}; commit {machine['commit']}"
    )
