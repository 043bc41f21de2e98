"""``lucid-deploy eval --task lm_eval:NAME``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lucid_deploy.cli._suite_options import SuiteArguments

if TYPE_CHECKING:
    from lucid_deploy.artifact import Artifact
    from lucid_deploy.cli._suites import OpenSession
    from lucid_deploy.runtimes.options import RuntimeOptions


def run_harness(
    artifact: Artifact,
    name: str,
    include_path: Path | None,
    limit: int | None,
    batch: int,
    seed: int | None,
    arguments: SuiteArguments,
    json_target: str | None,
    runtime: RuntimeOptions,
    open_session: OpenSession,
) -> None:
    """Run tasks of lm_eval by their names, separated by commas; show the results and write them.

    Raises:
        LucidError: An option makes no sense, a task is not known, or prompts are too long.
    """
    from lucid_deploy.cli._console import console_out, shown_after, write_json
    from lucid_deploy.cli._suites import chat_renderer
    from lucid_deploy.evaluation.harness import HarnessOptions, run_tasks
    from lucid_deploy.evaluation.tables import harness_table

    options = HarnessOptions(
        limit=limit,
        batch=batch,
        seed=seed,
        metadata=arguments.parsed_metadata(),
        gen_kwargs=arguments.parsed_gen_kwargs(),
        num_fewshot=arguments.num_fewshot,
        truncate=arguments.truncate,
        chat=chat_renderer(artifact) if arguments.apply_chat_template else None,
    )
    session, tokenizer = open_session(artifact, runtime)
    results = run_tasks(session, tokenizer, name.split(","), include_path, options)
    with shown_after(json_target, lambda: console_out.print(harness_table(results))):
        if json_target is not None:
            write_json({"artifact": str(artifact.directory), "ablate": runtime.ablate, **results}, json_target)
