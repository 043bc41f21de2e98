"""``lucid-deploy run --batch``: options to files and back."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from lucid_deploy.errors import CheckFailed, LucidError, reading

if TYPE_CHECKING:
    from lucid_deploy.artifact import Artifact
    from lucid_deploy.artifact.tokenizer import TextTokenizer
    from lucid_deploy.batching.prompts import PromptDefaults
    from lucid_deploy.generation.drafting import MakeDrafter
    from lucid_deploy.runtimes.session import Session

_CHUNK = 512  # prompt tokens between two steps of the running rows, unless told otherwise


@dataclass(frozen=True)
class BatchOptions:
    """The options of ``run`` that only a batch has."""

    batch: str
    output: str
    rows: int
    overwrite: bool
    prefix_tokens: int
    prefill_chunk: int | None
    speculate: tuple[str, ...]  # the mode, and which model drafts
    json_target: str | None

    def check(self) -> None:
        """Refuse a missing output, and a stream in the place of a file."""
        if not self.output:
            raise LucidError("--batch needs a file for the answers: --output answers.jsonl")
        for option, name in (("--batch", self.batch), ("--output", self.output)):
            if name == "-":
                raise LucidError(f"{option} cannot be -: an interrupted batch continues from its files. Name a file.")


def run_batch(
    options: BatchOptions,
    defaults: PromptDefaults,
    artifact: Artifact,
    tokenizer: TextTokenizer | None,
    open_session: Callable[[], Session[Any]],
    drafters: MakeDrafter | None = None,
) -> None:
    """Answer a file of prompts.

    Raises:
        LucidError: Prompts that cannot be run, or an output that has something else in it.
        CheckFailed: At the end, if a prompt got an error for an answer.
    """
    from lucid_deploy.artifact import MANIFEST
    from lucid_deploy.batching.answers import AnswerFile, answer_prompts
    from lucid_deploy.batching.batcher import Batcher
    from lucid_deploy.batching.prompts import check_prompts, read_prompts
    from lucid_deploy.cli._console import console_err, progress, write_json
    from lucid_deploy.cli._generation_options import drafts_text, note_greedy
    from lucid_deploy.generation.guide import GuideFactory

    file = read_prompts(options.batch, defaults)
    if not any(prompt.sampling.temperature for prompt in file.prompts):
        note_greedy(defaults.sampling)
    with progress("Loading the model"):
        session = open_session()
    chunk = _CHUNK if options.prefill_chunk is None else options.prefill_chunk
    guides = None
    if tokenizer is not None and any(prompt.constraint for prompt in file.prompts):
        guides = GuideFactory(tokenizer, session.config.vocab_size, session.config.eos_token_ids)
    batcher = Batcher(session, options.rows, chunk, options.prefix_tokens, guides, drafters)
    check_prompts(file, session, tokenizer)
    with reading(artifact.path(MANIFEST)):
        manifest = artifact.path(MANIFEST).read_bytes()
    used = {**asdict(defaults), "extrapolation": session.allow_extrapolation}
    facts = {
        "prompts": file.sha256,
        "artifact": hashlib.sha256(manifest).hexdigest(),
        "runtime": session.label,
        "options": json.loads(json.dumps(used)),  # as the record has them: lists
        **_steps(options, chunk, session),
    }
    answers = AnswerFile(options.output, facts, {prompt.line for prompt in file.prompts}, options.overwrite)
    before, total, started = len(answers.answered), len(file.prompts), time.perf_counter()
    try:
        with progress("Answering") as show:
            tokens = answer_prompts(batcher, file.prompts, answers, tokenizer, show)
    except (KeyboardInterrupt, SystemExit):  # which SIGTERM and SIGHUP become
        console_err.print(
            f"{len(answers.answered)} of {total} answers are in {options.output}; the same command continues.",
            markup=False,
            soft_wrap=True,
        )
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
    if options.json_target is not None:
        write_json(summary, options.json_target)
    rate = f": {tokens.generated} tokens in {seconds:.1f} s, {tokens.generated / seconds:.0f} tokens/s"
    console_err.print(
        f"{total - before} of {total} prompts answered"
        + (f", {before} had been before" if before else "")
        + (rate if before < total else "")
        + ("; " if drafters is None else f", {drafts_text(drafts)}; ")
        + f"{session.label}, {session.dtype}, {options.rows} rows",
        soft_wrap=True,
    )
    if answers.failed:
        raise CheckFailed(f"{answers.failed} of {total} prompts failed; {options.output} says why in the field error.")


def _steps(options: BatchOptions, chunk: int, session: Session[Any]) -> dict[str, Any]:
    """Return options that answers depend on by where tokens are run together, as the record has them."""
    found: dict[str, Any] = {"prefill_chunk": chunk}
    if session.rounds:
        found |= {"prefix_cache_tokens": options.prefix_tokens, "speculate": list(options.speculate)}
        if session.in_place is None:  # rows are padded to the longest
            found["rows"] = options.rows
    return found
