"""``lucid-deploy eval --suite``: from options to results."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lucid_deploy.cli._suite_options import SuiteArguments
from lucid_deploy.errors import LucidError

if TYPE_CHECKING:
    from lucid_deploy.artifact import Artifact
    from lucid_deploy.evaluation.suites.run import SuiteOptions, TaskResult
    from lucid_deploy.evaluation.suites.settings import SuiteTask
    from lucid_deploy.evaluation.suites.tasks import TaskMaker
    from lucid_deploy.evaluation.task import TokenizerLike
    from lucid_deploy.runtimes.options import RuntimeOptions
    from lucid_deploy.runtimes.session import Session

OpenSession = Callable[["Artifact", "RuntimeOptions"], tuple["Session[Any]", "TokenizerLike"]]


@dataclass(frozen=True)
class Request:
    """What ``eval --suite`` was asked for.

    Attributes:
        arguments: The options of suites.
        lengths: ``--lengths`` as given.
        needles: ``--needles`` as given.
        limit: Documents of each task; None: as published.
        batch: Contexts to run at once.
        seed: Of documents and of lm_eval.
        runtime: What runs the models.
        json_target: Where results go as JSON; None: nowhere.
    """

    arguments: SuiteArguments
    lengths: str | None
    needles: str | None
    limit: int | None
    batch: int
    seed: int
    runtime: RuntimeOptions
    json_target: str | None


def run(artifact: Artifact, other: Artifact | None, request: Request, open_session: OpenSession) -> None:
    """Run a suite, show it and write it.

    Raises:
        LucidError: An option makes no sense, data are missing, or prompts are too long.
    """
    from lucid_deploy.cli._console import console_out, shown_after, write_json
    from lucid_deploy.evaluation.suites.compare import compare_suites, difference_table, differences_to_list
    from lucid_deploy.evaluation.suites.report import suite_table, write_output

    arguments = request.arguments
    if arguments.log_samples and arguments.output_path is None:
        raise LucidError("--log-samples needs --output-path DIR to write to.")
    tasks, metadata = _plan(request)
    session, tokenizer = open_session(artifact, request.runtime)
    maker = _maker(request, metadata, tokenizer)
    results = _ask(artifact, session, tokenizer, tasks, maker, request, "answers.jsonl")
    facts = _facts(artifact, session, tasks, results, request, maker)
    del session  # two models need not be in memory at once
    differences = None
    if other is not None:
        whole = replace(request, runtime=replace(request.runtime, ablate=None))
        theirs = _ask(other, *open_session(other, whole.runtime), tasks, maker, whole, "answers_against.jsonl")
        differences = compare_suites(results, theirs)
        facts["against"] = {
            "artifact": str(other.directory),
            "tasks": [result.to_dict() for result in theirs],
            "differences": differences_to_list(differences),
        }

    def show() -> None:
        console_out.print(suite_table(str(arguments.suite), results))
        if differences is not None:
            title = f"{artifact.directory.name} less {other.directory.name if other else ''}"
            console_out.print(difference_table(title, differences))

    with shown_after(request.json_target, show):
        if arguments.output_path is not None:
            write_output(Path(arguments.output_path), facts, results, arguments.log_samples)
        if request.json_target is not None:
            write_json(facts, request.json_target)


def _plan(request: Request) -> tuple[list[SuiteTask], dict[str, Any]]:
    """Return the tasks, and what of ``--metadata`` is not about them."""
    from lucid_deploy.evaluation.suites import plan

    metadata = request.arguments.parsed_metadata()
    lengths, needles = _items(request.lengths), _items(request.needles)
    for name, option, given in (("max_seq_lengths", "--lengths", lengths), ("num_needle_k", "--needles", needles)):
        if name in metadata and given:
            raise LucidError(f"{option} and {name} in --metadata say the same: give one of them.")
        value = metadata.pop(name, [])
        given.extend(map(str, value if isinstance(value, list) else [value]))
    if wrong := [item for item in needles if not item.isdecimal()]:
        raise LucidError(f"--needles takes whole numbers separated by commas, not {wrong[0]!r}.")
    suite = str(request.arguments.suite)
    return plan(suite, lengths, [int(item) for item in needles], _items(request.arguments.only)), metadata


def _items(text: str | None) -> list[str]:
    return [] if text is None else [item.strip() for item in text.split(",")]


def _maker(request: Request, metadata: dict[str, Any], tokenizer: TokenizerLike) -> TaskMaker:
    from lucid_deploy.evaluation.suites.haystack import BUNDLED, open_haystack
    from lucid_deploy.evaluation.suites.tasks import TaskMaker

    arguments = request.arguments
    if arguments.haystack is not None and arguments.suite not in ("ruler", "mniah"):
        raise LucidError(f"--haystack is for the suites ruler and mniah; {arguments.suite} hides nothing.")
    haystack = arguments.haystack or BUNDLED
    folder = arguments.folder
    return TaskMaker(tokenizer, lambda: open_haystack(haystack, folder), folder, metadata, request.seed)


def _options(request: Request, artifact: Artifact) -> SuiteOptions:
    from lucid_deploy.evaluation.suites import SUITES
    from lucid_deploy.evaluation.suites.run import SuiteOptions

    arguments = request.arguments
    limit = SUITES[str(arguments.suite)].limit if request.limit is None else request.limit
    return SuiteOptions(
        limit=limit,
        batch=request.batch,
        num_fewshot=arguments.num_fewshot,
        gen_kwargs=arguments.parsed_gen_kwargs(),
        truncate=arguments.truncate,
        chat=chat_renderer(artifact) if arguments.apply_chat_template else None,
        seed=request.seed,
    )


def chat_renderer(artifact: Artifact) -> Callable[[list[dict[str, str]], bool], str]:
    """Return what turns messages into text with an artifact's chat template.

    Raises:
        LucidError: It has none, or none for chats without tools.
    """
    from lucid_deploy.artifact.chat_process import chat_renderer as renderer

    chat = renderer(artifact.directory)
    if chat is None:
        raise LucidError(f"{artifact.directory} has no chat template: leave --apply-chat-template out.")
    return chat


def _ask(
    artifact: Artifact,
    session: Session[Any],
    tokenizer: TokenizerLike,
    tasks: list[SuiteTask],
    maker: TaskMaker,
    request: Request,
    file: str,
) -> list[TaskResult]:
    from lucid_deploy.cli._console import note, progress
    from lucid_deploy.evaluation.answer_log import AnswerLog
    from lucid_deploy.evaluation.lm_eval_requests import RULES
    from lucid_deploy.evaluation.suites.run import run_suite
    from lucid_deploy.model.tokenizer_files import is_tokenizer_file

    options, place = _options(request, artifact), request.arguments.output_path
    files = artifact.manifest.files
    owner = {
        "model": artifact.identity,
        "tokenizer": {name: files[name]["sha256"] for name in files if is_tokenizer_file(name)},
        "rules": RULES,
        "runtime": session.facts(),
        "ablate": request.runtime.ablate,
        "truncate": options.truncate,
        "context": session.context_limit,
    }
    log = None if place is None else AnswerLog(Path(place) / file, owner)
    if log is not None and log.found:
        note(f"{log.found} answers are at {place} already.")
    with (
        nullcontext() if log is None else closing(log),
        progress(f"Asking {artifact.directory.name}", estimate=True) as update,
    ):
        return run_suite(session, tokenizer, tasks, maker, options, log, update)


def _facts(
    artifact: Artifact,
    session: Session[Any],
    tasks: list[SuiteTask],
    results: list[TaskResult],
    request: Request,
    maker: TaskMaker,
) -> dict[str, Any]:
    import lm_eval

    arguments = request.arguments
    return {
        "artifact": str(artifact.directory),
        **session.facts(),
        "ablate": request.runtime.ablate,
        "suite": arguments.suite,
        "limit": _options(request, artifact).limit,
        "num_fewshot": arguments.num_fewshot,
        "gen_kwargs": arguments.parsed_gen_kwargs(),
        "chat_template": arguments.apply_chat_template,
        "truncate": arguments.truncate,
        "lm_eval": lm_eval.__version__,
        **maker.facts,
        "tasks": [result.to_dict() for result in results],
    }
