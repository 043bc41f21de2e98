"""The command ``lucid-deploy eval``: measure how good an artifact's answers are."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from lucid_deploy.cli._command import Command
from lucid_deploy.cli._console import console_out, progress, show, write_results
from lucid_deploy.cli._generation_options import note_unknown_words, read_file
from lucid_deploy.cli._options import NumberList, NumberRange, artifact_argument, json_option, runtime_options
from lucid_deploy.errors import CheckFailed, LucidError, missing_extra

if TYPE_CHECKING:
    from lucid_deploy.artifact import Artifact
    from lucid_deploy.artifact.tokenizer import TextTokenizer
    from lucid_deploy.runtimes.options import RuntimeOptions
    from lucid_deploy.runtimes.session import Session

HARNESS = "lm_eval:"
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
CHOICES = {
    "recall": "--task recall",
    "needles": "--task needles",
    "lm_eval": f"--task {HARNESS}NAME",
    "text": "--text FILE",
}
_MEANT_FOR = {  # options that only some tasks take, with these tasks
    **dict.fromkeys(("limit", "seed", "batch"), ("recall", "needles", "lm_eval")),
    **dict.fromkeys(("needles", "ask", "length"), ("needles",)),
    **dict.fromkeys(("minimum", "minimum_relative"), ("recall", "needles")),
    **dict.fromkeys(("include_path", "truncate", "metadata", "gen_kwargs", "num_fewshot"), ("lm_eval",)),
    **dict.fromkeys(("apply_chat_template", "output_path", "log_samples"), ("lm_eval",)),
}


def _kind(options: SimpleNamespace) -> str:
    """Return which of :data:`CHOICES` is asked for, after refusing options that have no effect on it."""
    if options.task is None and options.text is None:
        *most, last = CHOICES.values()
        raise LucidError(f"Choose what to evaluate: {', '.join(most)}, or {last} for the perplexity of a text.")
    if options.task is not None and options.text is not None:
        raise LucidError("--task and --text both say what to run: give one of them.")
    task = options.task or ""
    kind = "text" if options.text is not None else "lm_eval" if task.startswith(HARNESS) else task
    if kind not in CHOICES or task in ("lm_eval", "text"):
        raise LucidError(f"Task {task!r} is not known; known are recall, needles and {HARNESS}NAME.")
    for name, kinds in _MEANT_FOR.items():
        value = getattr(options, name)
        if value is not None and value is not False and kind not in kinds:
            option = f"--{name.replace('_', '-')}"
            raise LucidError(f"{option} is for {' and '.join(CHOICES[each] for each in kinds)}.")
    if options.minimum_relative is not None and options.against is None:
        raise LucidError("--minimum-relative compares with another artifact: name it with --against DIR.")
    if options.log_samples and options.output_path is None:
        raise LucidError("--log-samples needs --output-path DIR to write to.")
    return kind


@click.command("eval", cls=Command)
@artifact_argument
@click.option("--task", help="recall, needles, or lm_eval:NAME[,NAME] for tasks of lm-evaluation-harness.")
@click.option("--text", metavar="FILE", type=click.Path(), help="Measure the perplexity of a text.")
@runtime_options("runtime", "device", "provider", "kernels", "threads", "adapter", "allow_extrapolation", "ablate")
@click.option(
    "--limit",
    type=click.IntRange(1, 1_000_000),
    help="Prompts for each length or task.  [default: 200; lm_eval: all]",
)
@click.option(
    "--seed",
    type=click.IntRange(0, (1 << 32) - 1),
    help="Seed of the prompts.  [default: 2026; lm_eval: its own]",
)
@click.option("--batch", type=click.IntRange(1), help="Prompts to run at once.  [default: 8]")
@click.option("--needles", type=int, help="Needles in a text.  [default: 4]")
@click.option("--ask", type=int, help="With --task needles: how many of a text's needles are asked for. [default: all]")
@click.option(
    "--length",
    type=NumberList("512,4k"),
    metavar="N,N,...",
    help="Tokens of a prompt with needles.  [default: 1/8, 1/4, 1/2 and all of the context, or of 4096 if less]",
)
@click.option("--against", metavar="OTHER", type=click.Path(), help="Another artifact, which gets the same questions.")
@click.option("--minimum", type=NumberRange(0, 1), help="Exit with 1 if the accuracy is lower, such as 0.97.")
@click.option(
    "--minimum-relative", type=NumberRange(0), help="Exit with 1 below this fraction of the accuracy of --against."
)
@click.option("--include-path", metavar="DIR", type=FOLDER, help="With lm_eval: a directory with more tasks.")
@click.option(
    "--truncate",
    type=click.Choice(["left", "middle"]),
    help="Cut the beginning, or the middle, of prompts that are too long.  [default: refuse them]",
)
@click.option("--metadata", metavar="JSON", help="For lm_eval's tasks, as with lm_eval's own --metadata.")
@click.option("--gen-kwargs", metavar="JSON", help="Generation options in place of the tasks'; also name=value,…")
@click.option("--num-fewshot", type=click.IntRange(min=0), help="Solved examples in each prompt.")
@click.option("--apply-chat-template", is_flag=True, help="Ask as a chat, with the model's chat template.")
@click.option(
    "--output-path",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Keep results and answers; the same command continues from there.",
)
@click.option("--log-samples", is_flag=True, help="With --output-path: write every prompt and answer too.")
@json_option("the results")
def command(artifact: str, **given: Any) -> None:
    """Measure how good an artifact's answers are.

    recall asks for entries of lists, with prompts that were held out of the bundled model's training. needles hides
    facts at known depths in texts of known lengths and asks for them. Answers are generated greedily and count if they
    are exactly right; accuracies come with their 95 % intervals. --ablate leaves out a part of LUCID attention; the
    artifact of --against runs without --ablate.

    Example: lucid-deploy eval ./artifact --task needles --needles 4 --length 128,256 --minimum 0.9
    """
    from lucid_deploy.artifact import open_artifact

    options = SimpleNamespace(**given)
    run = {"recall": _questions, "needles": _questions, "text": _perplexity}.get(_kind(options), _harness)
    options.batch = options.batch or 8
    opened = open_artifact(artifact)
    other = None if options.against is None else open_artifact(options.against)
    run(opened, other, options)


def _open(artifact: Artifact, runtime: RuntimeOptions) -> tuple[Session[Any], TextTokenizer]:
    from lucid_deploy.artifact.tokenizer import TextTokenizer
    from lucid_deploy.runtimes import open_session

    tokenizer = TextTokenizer(artifact.directory)
    with progress("Loading the model"):
        return open_session(artifact, runtime), tokenizer


def _perplexity(artifact: Artifact, other: Artifact | None, options: SimpleNamespace) -> None:
    """Measure the perplexity of ``--text``, compare it with that of ``--against`` if given, and write both."""
    import numpy as np

    from lucid_deploy.parity.perplexity import cost_on_text, session_logits, surprisals, windows

    text = read_file("--text", options.text)
    session, tokenizer = _open(artifact, options.runtime)
    note_unknown_words(tokenizer, text)
    ids = np.asarray(tokenizer.encode(text), np.int64)
    pieces, done = windows(ids, session.config.max_position_embeddings), iter(range(1, 1 + len(ids)))
    with progress(f"Scoring {artifact.directory.name}", estimate=True) as update:
        found = surprisals(session_logits(session), pieces, lambda: update(next(done), len(pieces)))
    if not np.isfinite(found).all():
        raise CheckFailed("The model gave logits that are not finite.")
    facts = {
        "artifact": str(artifact.directory),
        **session.facts(),
        "ablate": options.runtime.ablate,
        "text": options.text,
    }
    facts |= {"tokens": len(found), "window": len(pieces[0]), "perplexity": float(np.exp(found.mean()))}
    line = "perplexity {perplexity:.4f} over {tokens} tokens, in windows of {window}; {runtime}".format(**facts)
    lines = [f"{line}, {artifact.manifest.numbers}"]
    if other is not None:
        theirs, their_tokenizer = _open(other, replace(options.runtime, ablate=None))
        if their_tokenizer.encode(text) != ids.tolist():
            raise LucidError(f"{other.directory} tokenizes the text differently, so the two cannot be compared.")
        done = iter(range(1, 1 + len(ids)))
        with progress(f"Comparing with {other.directory.name}", estimate=True) as update:
            logits = session_logits(session), session_logits(theirs)
            cost = cost_on_text(*logits, pieces, lambda: update(next(done), len(pieces)))
        facts["against"] = {"artifact": options.against, **asdict(cost)}
        lines.append(f"against {other.directory}: {cost.original:.4f}, so {cost.sentence()}")
    write_results(facts, options.json_target, lambda: show("\n".join(lines)))


def _questions(artifact: Artifact, other: Artifact | None, options: SimpleNamespace) -> None:
    """Ask the artifact, and ``--against`` if given, the questions of recall or needles; write the accuracies."""
    from lucid_deploy.artifact.tokenizer import TextTokenizer
    from lucid_deploy.evaluation import compare, evaluate, needles_task, recall_task
    from lucid_deploy.evaluation.report import require, summary
    from lucid_deploy.evaluation.task import SEED

    limit, seed = 200 if options.limit is None else options.limit, SEED if options.seed is None else options.seed
    for each in (artifact, other):  # refused before anything runs
        if options.task == "recall" and each is not None:
            recall_task(TextTokenizer(each.directory), limit, seed)
    session, tokenizer = _open(artifact, options.runtime)
    if options.task == "recall":
        task = recall_task(tokenizer, limit, seed)
    else:
        task = needles_task(
            tokenizer,
            session.context_limit,
            needles=4 if options.needles is None else options.needles,
            ask=options.ask,
            lengths=options.length,
            limit=limit,
            seed=seed,
        )
    with progress(f"Asking {artifact.directory.name}") as update:
        report = evaluate(session, tokenizer, task, options.batch, update)
    facts: dict[str, Any] = {"artifact": str(artifact.directory), **session.facts(), **report.to_dict()}
    facts |= {"quantization": _quantization(artifact), "ablate": options.runtime.ablate}
    del session  # two models need not be in memory at once
    comparison, theirs = None, ""
    if other is not None:
        opened = _open(other, replace(options.runtime, ablate=None))
        with progress(f"Asking {other.directory.name}") as update:
            comparison = compare(report, evaluate(*opened, task, options.batch, update))
        facts["against"] = {"artifact": options.against, **comparison.to_dict(), "quantization": _quantization(other)}
        theirs = f"{other.directory}, {other.manifest.numbers}"

    def show_report() -> None:
        console_out.print(report.table())
        show("\n".join(summary(report, artifact.manifest.numbers, comparison, theirs)))

    write_results(facts, options.json_target, show_report)
    require(report, comparison, options.minimum, options.minimum_relative)


def _quantization(artifact: Artifact) -> dict[str, Any] | None:
    """Return scheme, method and bits per weight of an artifact's quantization; None if it is not quantized."""
    record = artifact.manifest.quantization
    if record is None:
        return None
    bits = record.bits_per_weight(artifact.manifest.dtype)
    return {"scheme": record.scheme, "method": record.method.name, "bits_per_weight": bits}


def _harness(artifact: Artifact, other: Artifact | None, options: SimpleNamespace) -> None:
    """Run tasks of lm-evaluation-harness on the artifact, and on ``--against`` if given; write the results."""
    try:
        import lm_eval

        from lucid_deploy.evaluation import harness
    except ImportError as error:
        raise missing_extra("lm_eval", "eval", "run tasks of lm-evaluation-harness") from error
    metadata = harness.json_object("--metadata", options.metadata)
    settings = harness.HarnessOptions(
        limit=options.limit,
        num_fewshot=options.num_fewshot,
        gen_kwargs=harness.generation_options(options.gen_kwargs),
        chat=options.apply_chat_template,
        seed=options.seed,
        batch=options.batch,
        truncate=options.truncate,
        output=options.output_path,
    )
    session = _open(artifact, options.runtime)[0]
    names = options.task.removeprefix(HARNESS).split(",")
    tasks = harness.load_tasks(names, artifact, options.include_path, metadata, options.seed)
    with progress(f"Asking {artifact.directory.name}", estimate=True) as update:
        results = harness.ask(artifact, session, tasks, settings, options.runtime, "answers", update)
    facts = {
        "artifact": str(artifact.directory),
        **session.facts(),
        "ablate": options.runtime.ablate,
        "limit": settings.limit,
        "num_fewshot": options.num_fewshot,
        "gen_kwargs": settings.gen_kwargs,
        "chat_template": options.apply_chat_template,
        "truncate": options.truncate,
        "lm_eval": lm_eval.__version__,
        "tasks": [result.to_dict() for result in results],
    }
    del session  # two models need not be in memory at once
    tables = [harness.result_table("lm-evaluation-harness", results)]
    if other is not None:
        whole = replace(options.runtime, ablate=None)
        session = _open(other, whole)[0]
        with progress(f"Asking {other.directory.name}", estimate=True) as update:
            theirs = harness.ask(other, session, tasks, settings, whole, "answers_against", update)
        differences = harness.compare_tasks(results, theirs)
        facts["against"] = {
            "artifact": str(other.directory),
            "tasks": [result.to_dict() for result in theirs],
            "differences": [{"task": t, "metric": m, **asdict(item)} for (t, m), item in differences.items()],
        }
        tables.append(harness.difference_table(f"{artifact.directory.name} less {other.directory.name}", differences))
    if settings.output is not None:
        harness.write_output(settings.output, facts, results, options.log_samples)
    write_results(facts, options.json_target, lambda: console_out.print(*tables, sep="\n"))
