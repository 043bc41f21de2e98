"""``lucid-deploy eval``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lucid_deploy.cli._command import Command
from lucid_deploy.cli._options import NumberRange, artifact_argument, json_option, runtime_options
from lucid_deploy.cli._suite_options import SuiteArguments, suite_options

if TYPE_CHECKING:
    from lucid_deploy.artifact import Artifact
    from lucid_deploy.evaluation import Comparison, Report, Task
    from lucid_deploy.evaluation.task import TokenizerLike
    from lucid_deploy.runtimes.options import RuntimeOptions
    from lucid_deploy.runtimes.session import Session

HARNESS = "lm_eval:"
DEFAULT_LIMIT, DEFAULT_SEED, SUITE_SEED = 200, 2026, 0
_OF_SUITES = ("only", "data", "haystack", "output_path", "log_samples")
_OF_LM_EVAL = ("truncate", "metadata", "gen_kwargs", "num_fewshot", "apply_chat_template")


@click.command("eval", cls=Command)
@artifact_argument
@click.option("--task", help="recall, needles, or lm_eval:NAME for a task of lm-evaluation-harness.  [default: recall]")
@runtime_options("runtime", "device", "provider", "kernels", "threads", "allow_extrapolation", "ablate")
@click.option(
    "--limit",
    type=int,
    help="Prompts; with needles, of each length; with lm_eval, documents of each task. "
    " [default: 200; lm_eval: all; suites: as published]",
)
@click.option("--seed", type=int, help="Seed of the prompts.  [default: 2026; suites: 0, as published]")
@click.option("--batch", type=int, default=8, show_default=True, help="Prompts to run at once.")
@click.option(
    "--needles",
    metavar="N[,N,...]",
    help="Needles in a text; several numbers with --suite mniah.  [default: 4; mniah: 2,4,6,8,10]",
)
@click.option("--ask", type=int, help="How many of a text's needles are asked for.  [default: all]")
@click.option(
    "--length",
    "--lengths",
    "lengths",
    metavar="N,N,...",
    help="Lengths of the needles' texts, or of a suite's prompts with their answers, in tokens. "
    " [default: 1/8, 1/4, 1/2, all of 4096; suites: as published]",
)
@click.option(
    "--wording",
    type=click.Choice(["auto", "english", "recall"]),
    help="Words of the needles' texts: English, or those of the bundled model. "
    " [default: auto, what the tokenizer can write]",
)
@click.option("--against", metavar="OTHER", type=click.Path(), help="Another artifact to put the same questions to.")
@click.option("--minimum", type=NumberRange(0, 1), help="Exit with 1 if the accuracy is lower, such as 0.97.")
@click.option(
    "--minimum-relative",
    type=NumberRange(min=0),
    help="Exit with 1 if it is below this share of the accuracy of --against.",
)
@click.option(
    "--include-path", metavar="DIR", type=click.Path(), help="With lm_eval: a directory with more tasks as YAML files."
)
@suite_options
@json_option("the results")
def command(
    artifact: str,
    task: str | None,
    limit: int | None,
    seed: int | None,
    batch: int,
    against: str | None,
    minimum: float | None,
    minimum_relative: float | None,
    include_path: str | None,
    json_target: str | None,
    runtime: RuntimeOptions,
    suites: SuiteArguments,
    **needles: Any,
) -> None:
    """Measure how good an artifact's answers are.

    recall asks for entries of lists, with the held-out prompts of the bundled model. needles hides facts at known
    depths in texts of known lengths and asks for them. Answers are generated greedily and count if they are exactly
    right; accuracies come with their 95 % intervals. Suites are the evaluations that LUCID's authors report, run by
    lm-evaluation-harness. --ablate leaves out a part of LUCID attention; the artifact of --against is run whole.

    Example: lucid-deploy eval ./artifact --task needles --needles 4 --length 128,256 --minimum 0.9
    """
    from lucid_deploy.artifact import open_artifact
    from lucid_deploy.cli._console import shown_after, write_json
    from lucid_deploy.cli._harness import run_harness
    from lucid_deploy.cli._suites import Request
    from lucid_deploy.cli._suites import run as run_suite

    named = "recall" if task is None else task
    _check_usage(task, suites, needles, include_path, minimum, minimum_relative, against)
    opened = open_artifact(artifact)
    other = None if against is None else open_artifact(against)
    if suites.suite is not None:
        lengths, count = needles["lengths"], needles["needles"]
        seed = SUITE_SEED if seed is None else seed
        run_suite(opened, other, Request(suites, lengths, count, limit, batch, seed, runtime, json_target), _open)
        return
    if named.startswith(HARNESS):
        folder = None if include_path is None else Path(include_path)
        run_harness(
            opened, named.removeprefix(HARNESS), folder, limit, batch, seed, suites, json_target, runtime, _open
        )
        return
    limit = DEFAULT_LIMIT if limit is None else limit
    session, tokenizer = _open(opened, runtime)
    questions = _task(named, session, tokenizer, limit, DEFAULT_SEED if seed is None else seed, needles)
    if named == "recall":
        _note_other_words([opened] if other is None else [opened, other])
    report = _answer(opened, session, tokenizer, questions, batch)
    facts: dict[str, Any] = {"artifact": str(opened.directory), **session.facts(), **report.to_dict()}
    facts["quantization"] = _rounding(opened)
    if runtime.ablate is not None:
        facts["ablate"] = runtime.ablate
    del session  # two models need not be in memory at once
    comparison = None if other is None else _compare(report, other, batch, replace(runtime, ablate=None))
    if comparison is not None:
        facts["against"] = {"artifact": str(against), **comparison.to_dict()}
        facts["against"]["quantization"] = None if other is None else _rounding(other)
    models = [opened] if other is None else [opened, other]
    with shown_after(json_target, lambda: _show(report, comparison, against, models)):
        if json_target is not None:
            write_json(facts, json_target)
    _check(report, comparison, minimum, minimum_relative)


def _check_usage(
    task: str | None,
    suites: SuiteArguments,
    needles: dict[str, Any],
    include_path: str | None,
    minimum: float | None,
    minimum_relative: float | None,
    against: str | None,
) -> None:
    """Refuse options that would have no effect."""
    from lucid_deploy.errors import LucidError

    suite, harness = suites.suite is not None, task is not None and task.startswith(HARNESS)
    if suite and task is not None:
        raise LucidError("--task and --suite both say what to run: give one of them.")
    if not suite and not harness and task not in (None, "recall", "needles"):
        raise LucidError(f"Task {task!r} is not known; known are recall, needles and {HARNESS}NAME.")
    taken = ("needles", "ask", "lengths", "wording") if task == "needles" else ("needles", "lengths") if suite else ()
    if given := [name for name, value in needles.items() if value is not None and name not in taken]:
        raise LucidError(
            f"--{given[0].removesuffix('s') if given[0] == 'lengths' else given[0]} is for --task needles."
        )
    if include_path is not None and not harness:
        raise LucidError(f"--include-path is for tasks of lm-evaluation-harness: --task {HARNESS}NAME")
    if not suite and (option := suites.given(_OF_SUITES)):
        raise LucidError(f"{option} is for --suite NAME.")
    if not suite and not harness and (option := suites.given(_OF_LM_EVAL)):
        raise LucidError(f"{option} is for --suite NAME and --task {HARNESS}NAME.")
    if minimum_relative is not None and against is None:
        raise LucidError("--minimum-relative compares with another artifact: name it with --against DIR.")
    if harness and (against is not None or minimum is not None):
        raise LucidError("--against is for recall, needles and suites, --minimum are for the tasks recall and needles.")
    if suite and (minimum is not None or minimum_relative is not None):
        raise LucidError("--minimum and --minimum-relative are for the tasks recall and needles.")


def _note_other_words(artifacts: list[Artifact]) -> None:
    """Say which models were not trained on the words of recall, and refuse one that cannot write them."""
    from lucid_deploy.artifact.tokenizer import TextTokenizer
    from lucid_deploy.cli._console import note
    from lucid_deploy.errors import LucidError
    from lucid_deploy.evaluation import recall_task

    foreign = [artifact for artifact in artifacts if not _is_of_the_demo(artifact)]
    for artifact in foreign:
        tokenizer = TextTokenizer(artifact.directory)
        try:
            recall_task(tokenizer, limit=1)
        except LucidError as error:
            raise LucidError(f"{artifact.directory}: {error}") from error
    if foreign:
        names = " and ".join(str(artifact.directory) for artifact in foreign)
        note(
            f"Note: recall uses the words of the bundled model, which {names} {'was' if len(foreign) == 1 else 'were'} "
            "not trained on; needles and lm_eval:NAME ask in English."
        )


def _is_of_the_demo(artifact: Artifact) -> bool:
    """Whether an artifact has the bundled model's tokenizer."""
    from lucid_deploy.model.checkpoint import DEMO, resolve

    name = "tokenizer.json"
    path = artifact.path(name)
    return path.is_file() and path.read_bytes() == (resolve(DEMO) / name).read_bytes()


def _open(artifact: Artifact, runtime: RuntimeOptions) -> tuple[Session[Any], TokenizerLike]:
    from lucid_deploy.artifact.tokenizer import TextTokenizer
    from lucid_deploy.cli._console import progress
    from lucid_deploy.runtimes import open_session

    tokenizer = TextTokenizer(artifact.directory)
    with progress("Loading the model"):
        return open_session(artifact, runtime), tokenizer


def _task(
    name: str, session: Session[Any], tokenizer: TokenizerLike, limit: int, seed: int, needles: dict[str, Any]
) -> Task:
    from lucid_deploy.cli._console import progress
    from lucid_deploy.errors import LucidError
    from lucid_deploy.evaluation import needles_task, recall_task

    if name == "recall":
        return recall_task(tokenizer, limit, seed)
    if not str(needles["needles"] or 4).isdecimal():
        raise LucidError(f"--needles takes one whole number with --task needles, not {needles['needles']!r}.")
    try:
        lengths = needles["lengths"] and [int(item) for item in needles["lengths"].split(",")]
    except ValueError as error:
        raise LucidError(f"--length takes whole numbers separated by commas, not {needles['lengths']!r}.") from error
    with progress("Writing the texts"):
        return needles_task(
            tokenizer,
            session.context_limit,
            needles=4 if needles["needles"] is None else int(needles["needles"]),
            ask=needles["ask"],
            lengths=lengths,
            limit=limit,
            seed=seed,
            wording=needles["wording"] or "auto",
        )


def _answer(artifact: Artifact, session: Session[Any], tokenizer: TokenizerLike, task: Task, batch: int) -> Report:
    from lucid_deploy.cli._console import progress
    from lucid_deploy.evaluation import evaluate

    with progress(f"Asking {artifact.directory.name}") as update:
        return evaluate(session, tokenizer, task, batch, update)


def _compare(report: Report, other: Artifact, batch: int, runtime: RuntimeOptions) -> Comparison:
    from lucid_deploy.evaluation import compare

    session, tokenizer = _open(other, runtime)
    return compare(report, _answer(other, session, tokenizer, report.task, batch))


def _check(
    report: Report, comparison: Comparison | None, minimum: float | None, minimum_relative: float | None
) -> None:
    from lucid_deploy.errors import CheckFailed

    score = report.score
    if minimum is not None and score.accuracy < minimum:
        raise CheckFailed(
            f"{score.right} of {score.count} answers are right, {score.accuracy:.2%}; --minimum asks for {minimum:.2%}."
        )
    if minimum_relative is None or comparison is None:
        return
    relative = comparison.relative
    if relative is None:
        raise CheckFailed("The other artifact has no right answer at all, so there is nothing to compare with.")
    if relative < minimum_relative:
        raise CheckFailed(
            f"The accuracy is {relative:.2%} of the other artifact's ({score.right} against {comparison.other.right} "
            f"of {score.count} right); --minimum-relative asks for {minimum_relative:.2%}."
        )


def _rounding(artifact: Artifact) -> dict[str, Any] | None:
    """Return how an artifact's weights are quantized, as ``verify`` names it; None: they are not."""
    record = artifact.manifest.quantization
    if record is None:
        return None
    bits = record.bits_per_weight(artifact.manifest.dtype)
    return {"scheme": record.scheme, "method": record.method.name, "bits_per_weight": bits}


def _weights(artifact: Artifact) -> str:
    facts = _rounding(artifact)
    return "" if facts is None else ", {scheme}, {method}, {bits_per_weight:.4g} bits a weight".format(**facts)


def _show(report: Report, comparison: Comparison | None, against: str | None, artifacts: list[Artifact]) -> None:
    from rich.markup import escape

    from lucid_deploy.cli._console import console_out
    from lucid_deploy.evaluation.tables import percent, render_tables

    for table in render_tables(report):
        console_out.print(table)
    console_out.print(
        f"{report.task.name}: {percent(report.score)}; {report.runtime}, {report.dtype}{_weights(artifacts[0])}",
        soft_wrap=True,
        markup=False,
    )
    if comparison is None:
        return
    relative = "" if comparison.relative is None else f", relative accuracy {comparison.relative:.2%}"
    console_out.print(
        f"against {against}{_weights(artifacts[-1])}: {percent(comparison.other)}{relative}; right only here "
        f"{comparison.only_right}, only there {comparison.only_other_right}; {len(comparison.disagreements)} answers "
        "differ",
        soft_wrap=True,
        markup=False,
    )
    for item in comparison.disagreements[:10]:
        prompt = item.prompt if len(item.prompt) <= 60 else "… " + item.prompt[-58:]
        console_out.print(
            escape(f"  {prompt!r}: {item.answer!r} asked for, {item.given!r} here, {item.given_by_other!r} there"),
            soft_wrap=True,
        )
