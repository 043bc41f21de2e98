"""``lucid-deploy eval``."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lucid_deploy.cli._command import Command
from lucid_deploy.cli._options import NumberRange, artifact_argument, json_option, runtime_options
from lucid_deploy.errors import CheckFailed, LucidError

if TYPE_CHECKING:
    from lucid_deploy.artifact import Artifact
    from lucid_deploy.evaluation import Comparison, Report
    from lucid_deploy.evaluation.harness import HarnessOptions, TaskResult
    from lucid_deploy.evaluation.task import TokenizerLike
    from lucid_deploy.runtimes.options import RuntimeOptions
    from lucid_deploy.runtimes.session import Session

HARNESS = "lm_eval:"
CHOICES = {
    "recall": "--task recall",
    "needles": "--task needles",
    "lm_eval": f"--task {HARNESS}NAME",
    "suite": "--suite NAME",
    "text": "--text FILE",
}
_QUESTIONS, _HARNESS, _TASKS = ("recall", "needles"), ("lm_eval", "suite"), ("recall", "needles", "lm_eval", "suite")
_MEANT_FOR = {  # options that are not for everything that can be evaluated
    "limit": _TASKS,
    "seed": _TASKS,
    "against": _TASKS,
    "ask": ("needles",),
    "needles": ("needles", "suite"),
    "lengths": ("needles", "suite"),
    "minimum": _QUESTIONS,
    "minimum_relative": _QUESTIONS,
    "include_path": ("lm_eval",),
    "only": ("suite",),
    "data": ("suite",),
    "haystack": ("suite",),
    **dict.fromkeys(("truncate", "metadata", "gen_kwargs", "num_fewshot", "apply_chat_template"), _HARNESS),
    **dict.fromkeys(("output_path", "log_samples"), _HARNESS),
}


@dataclass(frozen=True)
class Options:
    """What was given on the command line; None or False: nothing."""

    task: str | None
    suite: str | None
    text: str | None
    limit: int | None
    seed: int | None
    batch: int
    needles: str | None
    ask: int | None
    lengths: str | None
    against: str | None
    minimum: float | None
    minimum_relative: float | None
    include_path: str | None
    only: str | None
    data: str | None
    haystack: str | None
    truncate: str | None
    metadata: str | None
    gen_kwargs: str | None
    num_fewshot: int | None
    apply_chat_template: bool
    output_path: str | None
    log_samples: bool

    def items(self, name: str) -> list[str]:
        """Return the values of an option that takes several with commas between them."""
        text = getattr(self, name)
        return [] if text is None else [item.strip() for item in text.split(",")]

    def numbers(self, name: str) -> list[int]:
        """Return the whole numbers of such an option."""
        try:
            return [int(item) for item in self.items(name)]
        except ValueError as error:
            flag = _flag(name)
            raise LucidError(f"{flag} takes whole numbers separated by commas, not {getattr(self, name)!r}.") from error


@click.command("eval", cls=Command)
@artifact_argument
@click.option("--task", help="recall, needles, or lm_eval:NAME[,NAME] for tasks of lm-evaluation-harness.")
@click.option(
    "--suite",
    metavar="NAME",
    help="ruler, mniah, longbench, scrolls or babilong, with the settings of LUCID's authors.",
)
@click.option("--text", metavar="FILE", type=click.Path(), help="Measure the perplexity of a text.")
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
@click.option("--ask", type=int, help="With --task needles: how many of a text's needles are asked for. [default: all]")
@click.option(
    "--length",
    "--lengths",
    "lengths",
    metavar="N,N,...",
    help="Lengths of the needles' texts, or of a suite's prompts with their answers, in tokens. "
    " [default: 1/8, 1/4, 1/2, all of 4096; suites: as published]",
)
@click.option("--against", metavar="OTHER", type=click.Path(), help="Another artifact to put the same questions to.")
@click.option("--minimum", type=NumberRange(0, 1), help="Exit with 1 if the accuracy is lower, such as 0.97.")
@click.option(
    "--minimum-relative",
    type=NumberRange(min=0),
    help="Exit with 1 if it is below this share of the accuracy of --against.",
)
@click.option("--include-path", metavar="DIR", type=click.Path(), help="With lm_eval: a directory with more tasks.")
@click.option("--only", metavar="NAME,NAME,...", help="With --suite: run these of its tasks.")
@click.option("--data", metavar="DIR", type=click.Path(), help="With --suite: where data are.  [default: the Hub]")
@click.option(
    "--haystack",
    metavar="TEXT",
    type=click.Path(),
    help="With --suite ruler or mniah: bundled, essays (those of RULER) or a text file that needles are hidden in. "
    " [default: bundled]",
)
@click.option(
    "--truncate",
    type=click.Choice(["left", "middle"]),
    help="Cut prompts of lm_eval that are longer than the context: keep the end, or both ends.  [default: refuse them]",
)
@click.option("--metadata", metavar="JSON", help="For lm_eval's tasks, as with lm_eval's own --metadata.")
@click.option(
    "--gen-kwargs", metavar="JSON", help="Generation options instead of the tasks' own; also name=value,name=value."
)
@click.option("--num-fewshot", type=click.IntRange(min=0), help="Solved examples in each prompt.")
@click.option("--apply-chat-template", is_flag=True, help="Ask as a chat, with the model's chat template.")
@click.option(
    "--output-path",
    metavar="DIR",
    type=click.Path(),
    help="Keep results and answers there. The same command continues where it was stopped.",
)
@click.option("--log-samples", is_flag=True, help="With --output-path: write every prompt and answer too.")
@json_option("the results")
def command(artifact: str, json_target: str | None, runtime: RuntimeOptions, **given: Any) -> None:
    """Measure how good an artifact's answers are.

    recall asks for entries of lists, with the held-out prompts of the bundled model. needles hides facts at known
    depths in texts of known lengths and asks for them. Answers are generated greedily and count if they are exactly
    right; accuracies come with their 95 % intervals. Suites are the evaluations that LUCID's authors report, run by
    lm-evaluation-harness. --ablate leaves out a part of LUCID attention; the artifact of --against is run whole.

    Example: lucid-deploy eval ./artifact --task needles --needles 4 --length 128,256 --minimum 0.9
    """
    from lucid_deploy.artifact import open_artifact

    options = Options(**given)
    kind = _kind(options)
    opened = open_artifact(artifact)
    other = None if options.against is None else open_artifact(options.against)
    if kind is None:
        if not _is_of_the_demo(opened):
            *most, last = (shown for name, shown in CHOICES.items() if name != "recall")
            raise LucidError(f"Choose what to evaluate: {', '.join(most)}, or {last} for the perplexity of a text.")
        kind = "recall"
    if kind == "text":
        _perplexity(opened, options, runtime, json_target)
    elif kind in _QUESTIONS:
        _questions(kind, opened, other, options, runtime, json_target)
    else:
        _harness(kind, opened, other, options, runtime, json_target)


def _kind(options: Options) -> str | None:
    """Return which of :data:`CHOICES` is asked for, None for none, after refusing options that have no effect."""
    given = [_flag(name) for name in ("task", "suite", "text") if getattr(options, name) is not None]
    if len(given) > 1:
        raise LucidError(f"{' and '.join(given)} both say what to run: give one of them.")
    task = options.task
    if options.suite is not None or options.text is not None:
        kind = "suite" if options.suite is not None else "text"
    elif task is not None and task not in _QUESTIONS and not task.startswith(HARNESS):
        raise LucidError(f"Task {task!r} is not known; known are recall, needles and {HARNESS}NAME.")
    else:
        kind = "lm_eval" if task is not None and task.startswith(HARNESS) else task or "recall"
    for name, kinds in _MEANT_FOR.items():
        if getattr(options, name) not in (None, False) and kind not in kinds:
            raise LucidError(f"{_flag(name)} is for {' and '.join(CHOICES[each] for each in kinds)}.")
    if options.minimum_relative is not None and options.against is None:
        raise LucidError("--minimum-relative compares with another artifact: name it with --against DIR.")
    if options.log_samples and options.output_path is None:
        raise LucidError("--log-samples needs --output-path DIR to write to.")
    return kind if given else None


def _flag(name: str) -> str:
    return "--length" if name == "lengths" else f"--{name.replace('_', '-')}"


def _open(artifact: Artifact, runtime: RuntimeOptions) -> tuple[Session[Any], TokenizerLike]:
    from lucid_deploy.artifact.tokenizer import TextTokenizer
    from lucid_deploy.cli._console import progress
    from lucid_deploy.runtimes import open_session

    tokenizer = TextTokenizer(artifact.directory)
    with progress("Loading the model"):
        return open_session(artifact, runtime), tokenizer


def _write(facts: dict[str, Any], json_target: str | None, show: Callable[[], None]) -> None:
    from lucid_deploy.cli._console import write_results

    write_results(facts, json_target, show)


def _perplexity(artifact: Artifact, options: Options, runtime: RuntimeOptions, json_target: str | None) -> None:
    """Measure the perplexity of ``--text``."""
    import numpy as np

    from lucid_deploy.cli._console import console_out, progress
    from lucid_deploy.parity.perplexity import session_logits, surprisals, windows

    session, tokenizer = _open(artifact, runtime)
    try:
        text = Path(str(options.text)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LucidError(f"The text {options.text} cannot be read: {error}.") from error
    ids = np.asarray(tokenizer.encode(text), np.int64)
    pieces, done = windows(ids, session.config.max_position_embeddings), iter(range(1, 1 + len(ids)))
    with progress(f"Scoring {artifact.directory.name}", estimate=True) as update:
        found = surprisals(session_logits(session), pieces, lambda: update(next(done), len(pieces)))
    if not np.isfinite(found).all():
        raise CheckFailed("The model gave logits that are not finite.")
    facts = {"artifact": str(artifact.directory), **session.facts(), "ablate": runtime.ablate, "text": options.text}
    facts |= {"tokens": len(found), "window": len(pieces[0]), "perplexity": float(np.exp(found.mean()))}
    shown = "perplexity {perplexity:.4f} over {tokens} tokens, in windows of {window}; {runtime}, {dtype}"
    _write(facts, json_target, lambda: console_out.print(shown.format(**facts), soft_wrap=True, markup=False))


def _questions(
    kind: str,
    artifact: Artifact,
    other: Artifact | None,
    options: Options,
    runtime: RuntimeOptions,
    json_target: str | None,
) -> None:
    """Ask the questions of recall or needles."""
    from lucid_deploy.evaluation import compare, needles_task, recall_task
    from lucid_deploy.evaluation.task import SEED

    limit = 200 if options.limit is None else options.limit
    seed = SEED if options.seed is None else options.seed
    if kind == "recall":
        _note_other_words([artifact] if other is None else [artifact, other])
    session, tokenizer = _open(artifact, runtime)
    if kind == "recall":
        task = recall_task(tokenizer, limit, seed)
    else:
        needles = options.numbers("needles") or [4]
        if len(needles) > 1:
            raise LucidError(f"--needles takes one whole number with --task needles, not {options.needles!r}.")
        lengths = None if options.lengths is None else options.numbers("lengths")
        task = needles_task(
            tokenizer,
            session.context_limit,
            needles=needles[0],
            ask=options.ask,
            lengths=lengths,
            limit=limit,
            seed=seed,
        )
    ask = functools.partial(_ask, task=task, batch=options.batch)
    report = ask(artifact, session, tokenizer)
    facts: dict[str, Any] = {"artifact": str(artifact.directory), **session.facts(), **report.to_dict()}
    facts |= {"quantization": _rounding(artifact), "ablate": runtime.ablate}
    del session  # two models need not be in memory at once
    comparison = None
    if other is not None:
        comparison = compare(report, ask(other, *_open(other, replace(runtime, ablate=None))))
        facts["against"] = {"artifact": options.against, **comparison.to_dict(), "quantization": _rounding(other)}
    _write(facts, json_target, lambda: _show(report, comparison, artifact, other))
    _check(report, comparison, options)


def _ask(artifact: Artifact, session: Session[Any], tokenizer: TokenizerLike, task: Any, batch: int) -> Report:
    from lucid_deploy.cli._console import progress
    from lucid_deploy.evaluation import evaluate

    with progress(f"Asking {artifact.directory.name}") as update:
        return evaluate(session, tokenizer, task, batch, update)


def _note_other_words(artifacts: list[Artifact]) -> None:
    """Name the models that were not trained on the words of recall; refuse one that cannot write them."""
    from lucid_deploy.artifact.tokenizer import TextTokenizer
    from lucid_deploy.cli._console import note
    from lucid_deploy.evaluation import recall_task

    for artifact in artifacts:
        if _is_of_the_demo(artifact):
            continue
        try:
            recall_task(TextTokenizer(artifact.directory), limit=1)
        except LucidError as error:
            raise LucidError(f"{artifact.directory}: {error}") from error
        note(f"Note: recall uses the words of the bundled model, on which {artifact.directory} was not trained.")


def _is_of_the_demo(artifact: Artifact) -> bool:
    """Return whether an artifact has the bundled model's tokenizer."""
    from lucid_deploy.model.checkpoint import DEMO, resolve

    name = "tokenizer.json"
    path = artifact.path(name)
    return path.is_file() and path.read_bytes() == (resolve(DEMO) / name).read_bytes()


def _check(report: Report, comparison: Comparison | None, options: Options) -> None:
    score, minimum, relative = report.score, options.minimum, options.minimum_relative
    if minimum is not None and score.accuracy < minimum:
        raise CheckFailed(
            f"{score.right} of {score.count} answers are right, {score.accuracy:.2%}; --minimum asks for {minimum:.2%}."
        )
    if relative is None or comparison is None:
        return
    if comparison.relative is None:
        raise CheckFailed("The other artifact has no right answer at all, so there is nothing to compare with.")
    if comparison.relative < relative:
        raise CheckFailed(
            f"The accuracy is {comparison.relative:.2%} of the other artifact's ({score.right} against "
            f"{comparison.other.right} of {score.count} right); --minimum-relative asks for {relative:.2%}."
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


def _show(report: Report, comparison: Comparison | None, artifact: Artifact, other: Artifact | None) -> None:
    from lucid_deploy.cli._console import console_out

    console_out.print(report.table())
    lines = [f"{report.task.name}: {report.score}; {report.runtime}, {report.dtype}{_weights(artifact)}"]
    if comparison is not None and other is not None:
        relative = "" if comparison.relative is None else f", relative accuracy {comparison.relative:.2%}"
        lines.append(
            f"against {other.directory}{_weights(other)}: {comparison.other}{relative}; right only here "
            f"{comparison.only_right}, only there {comparison.only_other_right}; {len(comparison.disagreements)} "
            "answers differ"
        )
        for item in comparison.disagreements[:10]:
            prompt = item.prompt if len(item.prompt) <= 60 else "… " + item.prompt[-58:]
            lines.append(f"  {prompt!r}: {item.answer!r} asked for, {item.given!r} here, {item.given_by_other!r} there")
    for line in lines:
        console_out.print(line, soft_wrap=True, markup=False)


def _harness(
    kind: str,
    artifact: Artifact,
    other: Artifact | None,
    options: Options,
    runtime: RuntimeOptions,
    json_target: str | None,
) -> None:
    """Run tasks of lm-evaluation-harness, by name or of a suite."""
    from lucid_deploy.cli._console import console_out
    from lucid_deploy.errors import missing_extra

    try:
        import lm_eval

        from lucid_deploy.evaluation import harness
        from lucid_deploy.evaluation.suites import SEED, SUITES
    except ImportError as error:
        raise missing_extra("lm_eval", "eval", "run tasks of lm-evaluation-harness") from error
    metadata, facts = _object("--metadata", options.metadata), dict[str, Any]()
    planned = _plan(options, metadata) if kind == "suite" else []
    asked = harness.HarnessOptions(
        limit=SUITES[str(options.suite)].limit if planned and options.limit is None else options.limit,
        num_fewshot=options.num_fewshot,
        gen_kwargs=_gen_kwargs(options.gen_kwargs),
        chat=options.apply_chat_template,
        seed=SEED if planned and options.seed is None else options.seed,
    )
    session, tokenizer = _open(artifact, runtime)
    if planned:
        tasks, facts = _suite_tasks(options, planned, metadata, asked, session, tokenizer)
    else:
        folder = None if options.include_path is None else Path(options.include_path)
        tasks = harness.load_tasks(str(options.task).removeprefix(HARNESS).split(","), folder, metadata)
    results = _run_tasks(artifact, session, tasks, options, asked, runtime, "answers")
    facts = {
        "artifact": str(artifact.directory),
        **session.facts(),
        "ablate": runtime.ablate,
        "suite": options.suite,
        "limit": asked.limit,
        "num_fewshot": options.num_fewshot,
        "gen_kwargs": asked.gen_kwargs,
        "chat_template": options.apply_chat_template,
        "truncate": options.truncate,
        "lm_eval": lm_eval.__version__,
        **facts,
        "tasks": [result.to_dict() for result in results],
    }
    del session  # two models need not be in memory at once
    differences = None
    if other is not None:
        whole = replace(runtime, ablate=None)
        theirs = _run_tasks(other, _open(other, whole)[0], tasks, options, asked, whole, "answers_against")
        differences = harness.compare_tasks(results, theirs)
        facts["against"] = {
            "artifact": str(other.directory),
            "tasks": [result.to_dict() for result in theirs],
            "differences": harness.differences_to_list(differences),
        }

    def show() -> None:
        console_out.print(harness.result_table(options.suite or "lm-evaluation-harness", results))
        if differences is not None and other is not None:
            title = f"{artifact.directory.name} less {other.directory.name}"
            console_out.print(harness.difference_table(title, differences))

    if options.output_path is not None:
        harness.write_output(Path(options.output_path), facts, results, options.log_samples)
    _write(facts, json_target, show)


def _run_tasks(
    artifact: Artifact,
    session: Session[Any],
    tasks: dict[str, Any],
    options: Options,
    asked: HarnessOptions,
    runtime: RuntimeOptions,
    file: str,
) -> list[TaskResult]:
    from lucid_deploy.cli._console import progress
    from lucid_deploy.evaluation.harness import run_tasks
    from lucid_deploy.evaluation.lm_eval_adapter import LucidLM

    if options.output_path is not None:
        owner = [artifact.identity, session.facts(), runtime.ablate, options.truncate, session.context_limit]
        owner.append({name: info["sha256"] for name, info in artifact.manifest.files.items() if "token" in name})
        digest = hashlib.sha256(json.dumps(owner, sort_keys=True).encode()).hexdigest()[:12]
        asked = replace(asked, answers=Path(options.output_path) / f"{file}-{digest}.db")  # a file for each model
    with progress(f"Asking {artifact.directory.name}", estimate=True) as update:
        lm = LucidLM(artifact, session=session, batch_size=options.batch, truncate=options.truncate, progress=update)
        return run_tasks(lm, tasks, asked)


def _plan(options: Options, metadata: dict[str, Any]) -> list[Any]:
    """Return the tasks of the suite; lengths and needles may come from ``metadata``, of which they are taken away."""
    from lucid_deploy.evaluation.suites import plan

    lengths, needles = options.items("lengths"), options.items("needles")
    for name, flag, given in (("max_seq_lengths", "--lengths", lengths), ("num_needle_k", "--needles", needles)):
        if name in metadata and given:
            raise LucidError(f"{flag} and {name} in --metadata say the same: give one of them.")
        value = metadata.pop(name, [])
        given.extend(map(str, value if isinstance(value, list) else [value]))
    if wrong := [item for item in needles if not item.isdecimal()]:
        raise LucidError(f"--needles takes whole numbers separated by commas, not {wrong[0]!r}.")
    if options.haystack is not None and options.suite not in ("ruler", "mniah"):
        raise LucidError(f"--haystack is for the suites ruler and mniah; {options.suite} hides nothing.")
    if options.data is not None and not Path(options.data).is_dir():
        raise LucidError(f"There are no data at {options.data}: no such directory.")
    if options.suite == "scrolls" and (options.gen_kwargs or options.num_fewshot):
        raise LucidError("The tasks of SCROLLS take neither --gen-kwargs nor --num-fewshot: leave them out.")
    return plan(str(options.suite), lengths, [int(item) for item in needles], options.items("only"))


def _suite_tasks(
    options: Options,
    planned: list[Any],
    metadata: dict[str, Any],
    asked: HarnessOptions,
    session: Session[Any],
    tokenizer: TokenizerLike,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the suite's tasks, and what determines their documents."""
    from lucid_deploy.cli._console import progress
    from lucid_deploy.evaluation.suites.documents import BUNDLED, open_haystack
    from lucid_deploy.evaluation.suites.tasks import TaskMaker

    most = session.context_limit  # None: --allow-extrapolation
    long = [task for task in planned if most is not None and isinstance(task.length, int) and task.length > most]
    if long and options.truncate is None:
        raise LucidError(
            f"{long[0].name} asks for {long[0].length} tokens, and the model's context is {most}: choose --lengths, "
            "or cut the prompts with --truncate."
        )
    folder = None if options.data is None else Path(options.data)
    opened = functools.partial(open_haystack, options.haystack or BUNDLED, folder)
    maker, tasks = TaskMaker(tokenizer, opened, folder, metadata, asked.seed or 0), {}
    with progress("Making the documents") as update:
        for number, task in enumerate(planned):
            update(number, len(planned))
            tasks[task.name] = maker.make(task, asked.limit)
    return tasks, maker.facts


def _object(option: str, text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise LucidError(f"{option} is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise LucidError(f"{option} takes a JSON object, not {text!r}.")
    return found


def _gen_kwargs(text: str | None) -> dict[str, Any]:
    """Return ``--gen-kwargs``: a JSON object, or ``name=value,name=value`` as lm_eval takes it."""
    if not text or text.lstrip().startswith("{"):
        return _object("--gen-kwargs", text or None)
    found: dict[str, Any] = {}
    for name, sign, value in (item.partition("=") for item in text.split(",")):
        if not sign or not name.strip():
            raise LucidError(f"--gen-kwargs takes a JSON object or name=value,name=value, not {name!r}.")
        try:
            found[name.strip()] = json.loads(value)
        except ValueError:
            found[name.strip()] = {"True": True, "False": False, "None": None}.get(value.strip(), value.strip())
    return found
