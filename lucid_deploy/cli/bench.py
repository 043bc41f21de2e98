"""``lucid-deploy bench``."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lucid_deploy.cli._command import Command
from lucid_deploy.cli._options import choice_option, json_option, runtime_options
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.options import KERNELS

if TYPE_CHECKING:
    from rich.table import Table

    from lucid_deploy.bench import Contender
    from lucid_deploy.runtimes.options import RuntimeOptions

CHOICES = {**{kernels: (kernels,) for kernels in KERNELS}, "both": ("library", "functions")}
STANDARD_IN = {"standard": None, "openvino": "openvino"}  # exported alike, and the runtime if it is another
_OF_SOLVERS = {"artifacts", "lengths", "repeats", "threads", "json_target", "solvers"}
QUESTIONS = 40  # of --solvers, about needles at each length, if the tokenizer has the words
BASELINES = ("standard", "torch-dense", "torch-blocked", "transformers", "llama.cpp", "openvino")


class _Numbers(click.ParamType):
    """Whole numbers separated by commas."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(item) for item in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers such as 512,2048.", param, ctx)
        if min(numbers) < 1:
            self.fail(f"{value!r} must hold positive numbers.", param, ctx)
        return numbers


@click.command("bench", cls=Command)
@click.argument("artifacts", nargs=-1, required=True, type=click.Path())
@click.option(
    "--lengths",
    type=_Numbers(),
    default="512,2048",
    show_default=True,
    help="Prompt lengths and contexts; the model's own does not bound them.",
)
@click.option("--batches", type=_Numbers(), default="1", show_default=True, help="Numbers of rows.")
@click.option("--stages", default="prefill,decode", show_default=True, help="prefill, decode, or both with a comma.")
@click.option(
    "--baseline",
    "baselines",
    type=click.Choice(BASELINES),
    multiple=True,
    help="Also measure: the shape with standard attention, exported alike; PyTorch eager with the dense solve; PyTorch "
    "with our operators; transformers' Llama; llama.cpp with a plain Llama of the sizes, in 8 or 4 bits if the "
    "artifact is; the shape with standard attention in OpenVINO. May be given several times.",
)
@runtime_options("runtime", "threads", help="What runs the artifacts; auto is onnxruntime.")
@choice_option(
    "--kernels",
    tuple(CHOICES),
    help="With onnxruntime: the library of plugin build --target onnxruntime, the graph's functions, or each artifact "
    "with both, side by side; auto takes the library if there is one.",
)
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Rounds to measure.")
@click.option(
    "--prefill-chunk", type=click.IntRange(min=1), help="Tokens of a prefill that run at once; default: 1024."
)
@click.option(
    "--solvers",
    is_flag=True,
    help="Instead: compare ways to solve LUCID's system, in three types: error of Y, time, what the model says.",
)
@click.option("--plot", "plot_directory", type=click.Path(), help="Directory for PNG plots.")
@json_option("results")
@click.pass_context
def command(
    context: click.Context,
    artifacts: tuple[str, ...],
    lengths: tuple[int, ...],
    batches: tuple[int, ...],
    stages: str,
    baselines: tuple[str, ...],
    runtime: RuntimeOptions,
    kernels: str,
    repeats: int,
    prefill_chunk: int | None,
    solvers: bool,
    plot_directory: str | None,
    json_target: str | None,
) -> None:
    """Measure prefill and decode of artifacts and baselines, side by side.

    Outputs are compared before anything is timed. Rounds are interleaved, so a machine that slows down slows all alike;
    ratios are to the first artifact, round by round.

    Example: lucid-deploy bench ./artifact --baseline standard --lengths 512,2048 --plot ./plots
    """
    if solvers:
        return _compare_solvers(context, artifacts, lengths, repeats, runtime.threads, json_target)
    from lucid_deploy.artifact import open_artifact
    from lucid_deploy.bench import Measurement, Plan, run_plan
    from lucid_deploy.bench.machine import copy_bandwidth, describe_machine, distrust, load_average
    from lucid_deploy.bench.plots import plot
    from lucid_deploy.bench.report import build_report, spread_of
    from lucid_deploy.cli._console import note, progress, shown_after, write_json

    load = load_average()  # before anything of ours runs
    chosen = tuple(stages.split(","))
    if not set(chosen) <= {"prefill", "decode"}:
        raise LucidError(f"--stages takes prefill, decode, or prefill,decode, not {stages!r}.")
    plan = Plan(lengths, batches, chosen, repeats, prefill_chunk)
    first = open_artifact(artifacts[0])
    _note_beyond(first.config.max_position_embeddings, lengths)
    contenders = [item for path in artifacts for item in _twice(Path(path).name, path, runtime, kernels)]
    measurements, opened = list[Measurement](), dict[str, dict[str, Any]]()
    with tempfile.TemporaryDirectory(prefix="lucid-bench-") as scratch:
        for name in baselines:
            if name in STANDARD_IN:
                note(f"Exporting the baseline {name}")
            contenders += _baseline(name, first, Path(scratch), runtime, kernels)
        names = [contender.name for contender in contenders]
        if len(set(names)) < len(names):
            raise LucidError(f"Contenders need different names; these are called {', '.join(names)}.")
        bandwidth = copy_bandwidth()

        def prepared(name: str, number: int) -> None:
            note(f"Opening {name}, {number} of {len(names)}")

        stopped = False
        with progress("Measuring", estimate=True) as update:
            try:
                run_plan(contenders, plan, first.manifest.dtype, update, measurements, opened, prepared)
            except KeyboardInterrupt:
                stopped = True
    if stopped and not measurements:
        raise KeyboardInterrupt
    machine = {**describe_machine(), "copy_bytes_per_second": bandwidth, "load_average_before": load}
    report = build_report(measurements, opened, plan, machine, _bytes(first, plan))
    report["distrust"] = distrust(machine["cores"], load, map(spread_of, report["measurements"]))
    if report["distrust"]:
        note(f"Note: do not trust these times: {'; '.join(report['distrust'])}. Measure again on a quiet machine.")
    for name, facts in opened.items():
        if facts.get("remark"):
            note(f"Note: {name}: {facts['remark']}")
    with shown_after(json_target, lambda: _show(report)):
        if stopped:
            note("Note: the run was stopped: these are the measurements that were complete.")
            raise KeyboardInterrupt
        if json_target is not None:
            write_json(report, json_target)
        if plot_directory is not None:
            plot(report, Path(plot_directory))


def _show(report: dict[str, Any]) -> None:
    from lucid_deploy.bench.report import table
    from lucid_deploy.cli._console import console_out

    console_out.print(table(report))
    used = {name: facts["kernels"] for name, facts in report["opened"].items() if facts["kernels"] is not None}
    if used:
        shown = ", ".join(f"{name} {kind}" for name, kind in used.items())
        console_out.print(f"Kernels: {shown}", soft_wrap=True, markup=False)
    for name, value in report["exponents"].items():
        console_out.print(f"{name}: time grows as length^{value:.2f}", markup=False)
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    copies = machine["copy_bytes_per_second"] / 1e9
    console_out.print(
        f"{machine['processor']}, {machine['cores']} cores, copies {copies:.1f} GB/s (read + write); {versions}; "
        f"commit {machine['commit']}",
        soft_wrap=True,
    )


def _note_beyond(made_for: int, lengths: tuple[int, ...]) -> None:
    from lucid_deploy.cli._console import note

    if beyond := [str(length) for length in lengths if length > made_for]:
        note(
            f"Note: {', '.join(beyond)} tokens are more than the model was made for ({made_for}, "
            "max_position_embeddings): their times are measured, run takes them with --allow-extrapolation only."
        )


def _twice(name: str, path: str, runtime: RuntimeOptions, kernels: str) -> list[Contender]:
    """Return an artifact with the chosen kernels; with both, the library's first."""
    from lucid_deploy.bench import Contender

    first, *more = CHOICES[kernels]
    names = {name: first, **{f"{name}-{each}": each for each in more}}
    return [Contender(title, "artifact", path, replace(runtime, kernels=each)) for title, each in names.items()]


def _baseline(name: str, artifact: Any, scratch: Path, runtime: RuntimeOptions, kernels: str) -> list[Contender]:
    from lucid_deploy.bench import Contender

    if name not in STANDARD_IN:
        return [Contender(name, name, str(artifact.directory), runtime)]
    from lucid_deploy.bench.standard import export_standard
    from lucid_deploy.runtimes.options import RuntimeOptions

    if (other := STANDARD_IN[name]) is not None:
        options = RuntimeOptions(other, threads=runtime.threads)
        _check_inlined(name, artifact, options)
        return [Contender(name, "artifact", str(export_standard(artifact, scratch, inline=True)), options)]
    return _twice(name, str(export_standard(artifact, scratch)), runtime, kernels)


def _check_inlined(name: str, artifact: Any, options: RuntimeOptions) -> None:
    """Refuse a baseline that its runtime does not take, before it is exported: types and caches are the artifact's."""
    from lucid_deploy.runtimes.open import check_fits

    inlined = replace(artifact, manifest=replace(artifact.manifest, inline=True))
    try:
        check_fits(inlined, options, here=False)
    except LucidError as error:
        reason = str(error).rsplit(". ", 1)[0]  # behind it stands what to do for an artifact
        raise LucidError(f"{reason}. Leave out --baseline {name}.") from error


def _bytes(artifact: Any, plan: Any) -> dict[str, int]:
    from lucid_deploy.artifact import WEIGHTS
    from lucid_deploy.bench.report import decode_bytes

    manifest = artifact.manifest
    weights = manifest.files[WEIGHTS]["size"]
    return {
        f"decode/{batch}/{length}": decode_bytes(manifest, weights, batch, length)
        for batch in plan.batches
        for length in plan.lengths
    }


def _compare_solvers(
    context: click.Context,
    artifacts: tuple[str, ...],
    lengths: tuple[int, ...],
    repeats: int,
    threads: int | None,
    json_target: str | None,
) -> None:
    """Compare ways to solve one artifact's system, and show a table."""
    from lucid_deploy.artifact import open_artifact
    from lucid_deploy.bench.machine import describe_machine
    from lucid_deploy.cli._console import console_out, progress, shown_after, write_json

    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") is click.core.ParameterSource.COMMANDLINE
        if given and option.name not in _OF_SOLVERS:
            raise LucidError(f"{option.opts[0]} has nothing to do with --solvers; leave one of them out.")
    if len(artifacts) != 1:
        raise LucidError(f"--solvers takes one artifact, not {len(artifacts)}.")
    artifact = open_artifact(artifacts[0])
    from lucid_deploy.bench.solver_comparison import compare_solvers
    from lucid_deploy.runtimes.torch.threads import torch_threads

    with progress("Solving") as update, torch_threads(threads):
        rows = compare_solvers(artifact, lengths, QUESTIONS, repeats, update)
    with shown_after(json_target, lambda: console_out.print(_solver_table(rows))):
        if json_target is not None:
            write_json({"machine": describe_machine(), "questions": QUESTIONS, "rows": rows}, json_target)


def _solver_table(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    asked = any(row["needles"] is not None for row in rows)
    table = Table("tokens", "solver", "type", "error of Y", "ms a layer", "best token as in float64")
    if asked:
        table.add_column("needles right")
    for row in rows:
        error = "not finite" if row["error"] is None else f"{row['error']:.1e}"
        cells = [str(row["length"]), row["solver"], row["dtype"], error, f"{row['milliseconds']:.2f}"]
        cells.append(f"{100 * row['same_best']:.1f} %")
        if asked:
            needles = row["needles"]
            cells.append("not asked" if needles is None else f"{needles['right']} of {needles['count']}")
        table.add_row(*cells)
    return table
