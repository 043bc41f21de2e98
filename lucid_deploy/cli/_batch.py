"""``lucid-deploy run --batch``: answer the prompts of one file, and write the answers into another."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from lucid_deploy.artifact import open_artifact
from lucid_deploy.cli._console import note, progress, write_results
from lucid_deploy.cli._generation_options import SpeculationOptions, drafts_text, note_greedy, open_tokenizer
from lucid_deploy.errors import CheckFailed, LucidError, reading

if TYPE_CHECKING:
    from lucid_deploy.artifact import Artifact
    from lucid_deploy.batching.prompt_file import PromptDefaults
    from lucid_deploy.runtimes.options import RuntimeOptions
    from lucid_deploy.runtimes.session import Session

_CHUNK = 512  # default of --prefill-chunk: most prompt tokens that run in one step while other rows decode


@dataclass(frozen=True)
class BatchOptions:
    """The options of ``lucid-deploy run --batch``, without those of answers, of the runtime and of speculation."""

    batch: str
    output: str
    rows: int
    overwrite: bool
    prefix_tokens: int
    prefill_chunk: int | None
    json_target: str | None


def run_batch(
    options: BatchOptions,
    defaults: PromptDefaults,
    artifact: Artifact,
    runtime: RuntimeOptions,
    speculation: SpeculationOptions,
) -> None:
    """Answer a file of prompts; raise CheckFailed at the end if any of them failed."""
    from lucid_deploy.batching.answer_file import AnswerFile, answer_prompts
    from lucid_deploy.batching.batcher import Batcher
    from lucid_deploy.batching.prompt_file import check_prompts, read_prompts
    from lucid_deploy.generation.guide import GuideFactory
    from lucid_deploy.runtimes import open_session

    if not options.output:
        raise LucidError("--batch needs a file for the answers: --output answers.jsonl")
    for option, name in (("--batch", options.batch), ("--output", options.output)):
        if name == "-":
            raise LucidError(f"{option} cannot be -: an interrupted batch continues from its files. Name a file.")
    drafters, tokenizer = speculation.open(artifact, runtime), open_tokenizer(artifact)
    file = read_prompts(options.batch, defaults)
    if not any(prompt.sampling.temperature for prompt in file.prompts):
        note_greedy(defaults.sampling)
    with progress("Loading the model"):
        session = open_session(artifact, runtime)
    chunk = _CHUNK if options.prefill_chunk is None else options.prefill_chunk
    guides = None
    if tokenizer is not None and any(prompt.constraint for prompt in file.prompts):
        guides = GuideFactory(tokenizer, session.config.vocab_size, session.config.eos_token_ids)
    batcher = Batcher(session, options.rows, chunk, options.prefix_tokens, guides, drafters)
    check_prompts(file, session, tokenizer)
    facts = _facts(options, defaults, artifact, session, speculation, chunk)
    facts["prompts"] = file.sha256
    answers = AnswerFile(options.output, facts, {prompt.line for prompt in file.prompts}, options.overwrite)
    before, total, started = len(answers.answered), len(file.prompts), time.perf_counter()
    try:
        with progress("Answering") as show:
            tokens = answer_prompts(batcher, file.prompts, answers, tokenizer, show)
    except (KeyboardInterrupt, SystemExit):  # SIGTERM and SIGHUP raise SystemExit
        note(f"{len(answers.answered)} of {total} answers are in {options.output}; the same command continues.")
        raise
    finally:
        answers.close()
    seconds, drafts = time.perf_counter() - started, replace(batcher.drafts, accepted=tokens.accepted)
    summary = {
        "prompts": total,
        "answered_before": before,
        "failed": answers.failed,
        "generated_tokens": tokens.generated,
        "prompt_tokens": batcher.prompt_tokens_computed,
        "prompt_tokens_reused": batcher.prompt_tokens_reused,
        "seconds": seconds,
        "speculation": None if drafters is None else asdict(drafts),
        **session.facts(),
    }
    parts = [f"{total - before} of {total} prompts answered"]
    if before < total:
        parts[0] += f": {tokens.generated} tokens in {seconds:.1f} s, {tokens.generated / seconds:.0f} tokens/s"
    parts += [f"{before} were answered before"] if before else []
    parts += [] if drafters is None else [drafts_text(drafts)]
    line = f"{', '.join(parts)}; {session.label}, {artifact.manifest.numbers}, {options.rows} rows"
    write_results(summary, options.json_target, lambda: None)
    note(line)
    if answers.failed:
        raise CheckFailed(f"{answers.failed} of {total} prompts failed; {options.output} says why in the field error.")


def _facts(
    options: BatchOptions,
    defaults: PromptDefaults,
    artifact: Artifact,
    session: Session[Any],
    speculation: SpeculationOptions,
    chunk: int,
) -> dict[str, Any]:
    """Return all that answers depend on, for the record beside them: a batch continues only if nothing has changed."""
    from lucid_deploy.artifact import MANIFEST

    with reading(artifact.path(MANIFEST)):
        manifest = artifact.path(MANIFEST).read_bytes()
    used = {**asdict(defaults), "extrapolation": session.allow_extrapolation}
    if session.adapters is not None:
        used["adapters"] = {name: each.sha256 for name, each in session.adapters.items()}
        used["adapter"] = session.default_adapter
    facts = {
        "artifact": hashlib.sha256(manifest).hexdigest(),
        "runtime": session.label,
        "options": json.loads(json.dumps(used)),  # tuples become lists, as in the record
        "prefill_chunk": chunk,
    }
    if session.rounds:  # results depend on which tokens run together
        draft = [] if speculation.draft is None else [open_artifact(speculation.draft).identity]
        facts |= {"prefix_cache_tokens": options.prefix_tokens, "speculate": [speculation.mode, *draft]}
        if session.in_place is None:  # each row is padded to the longest one
            facts["rows"] = options.rows
    return facts
