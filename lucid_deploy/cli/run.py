"""The command ``lucid-deploy run``: generate text with an artifact."""

from __future__ import annotations

import itertools
import re
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from lucid_deploy.cli._command import Command
from lucid_deploy.cli._console import note, progress, write_results
from lucid_deploy.cli._generation_options import (
    SpeculationOptions,
    answer_options,
    as_token_ids,
    drafts_text,
    note_unknown_words,
    open_guides,
    open_tokenizer,
    read_file,
    speculation_options,
)
from lucid_deploy.cli._options import artifact_argument, json_option, runtime_options
from lucid_deploy.cli._sources import given_options, origins, refuse_given
from lucid_deploy.errors import LucidError
from lucid_deploy.json_fields import shown

if TYPE_CHECKING:
    from lucid_deploy.artifact.tokenizer import TextTokenizer
    from lucid_deploy.batching.prompt_file import PromptDefaults
    from lucid_deploy.generation.generate import Generation
    from lucid_deploy.generation.text_stream import AnswerText
    from lucid_deploy.runtimes.options import RuntimeOptions


_PROMPTS = ("prompt", "prompt_file", "prompt_ids")


@click.command("run", cls=Command)
@artifact_argument
@click.argument("text", metavar="[PROMPT]", required=False)
@click.option("-p", "--prompt", help="The prompt, as an option instead; - reads it from stdin.")
@click.option("--prompt-file", metavar="FILE", help="The prompt as a text file, without the line break at its end.")
@click.option("--prompt-ids", metavar="IDS", help="The prompt as token ids instead, such as 1,15,7.")
@runtime_options("runtime", "device", "provider", "kernels", "threads", "adapter", "allow_extrapolation", "ablate")
@answer_options(128, None, "Run a prompt N tokens at a time; default: 1024, or the engines' limit; 512 with --batch.")
@speculation_options
@click.option("--check", is_flag=True, help="Compare the sha256 of every file with the manifest first.")
@json_option("text, ids and timings")
@click.option("--batch", metavar="FILE", help="Answer all prompts of a JSON Lines file, as described above.")
@click.option("--output", metavar="FILE", help="With --batch: where the answers go, as JSON Lines.")
@click.option(
    "--rows", type=click.IntRange(1, 1024), default=8, show_default=True, help="With --batch: prompts that run at once."
)
@click.option(
    "--prefix-cache-tokens",
    "--prefix-tokens",
    "prefix_tokens",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="With --batch: keep up to N tokens of caches for reuse.",
)
@click.option("--overwrite", is_flag=True, help="With --batch: start over, and replace the answers in the output.")
def command(
    artifact: str,
    text: str | None,
    prompt: str | None,
    prompt_file: str | None,
    prompt_ids: str | None,
    runtime: RuntimeOptions,
    answers: PromptDefaults,
    speculation: SpeculationOptions,
    prefill_chunk: int | None,
    check: bool,
    json_target: str | None,
    batch: str | None,
    output: str | None,
    rows: int,
    prefix_tokens: int,
    overwrite: bool,
) -> None:
    """Generate text with an exported artifact: the continuation of PROMPT.

    PROMPT may be - for stdin. The new text goes to stdout as it comes, a line of timings to stderr.

    With --batch FILE, each line of the file is a JSON object with "prompt" or "prompt_ids", and optionally "id",
    "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "logit_bias" (an object from token ids to numbers) and "bad_words" (a list), and one of
    "guided_json" (a schema), "guided_regex", "guided_choice" (a list) and "guided_grammar", and "adapter" (a name);
    they replace the options.
    Each line of the output is an answer with the number of its "line", in the order in which they are completed. After
    an interruption run the same command again: it continues where it stopped.

    Example: lucid-deploy run ./artifact "fox has red lamp, owl has blue cup. owl has"
    """
    from lucid_deploy.artifact import check_hashes, open_artifact

    opened = open_artifact(artifact)
    for each in [opened, *([open_artifact(speculation.draft)] if speculation.draft else [])] if check else []:
        with progress("Checking hashes") as update:
            check_hashes(each, update)
    prompts = [each for each in (text, prompt, prompt_file, prompt_ids) if each is not None]
    context = click.get_current_context()
    if batch is not None:
        from lucid_deploy.cli._batch import BatchOptions, run_batch

        if prompts:
            raise LucidError("--batch brings its own prompts; leave out PROMPT, --prompt, --prompt-file, --prompt-ids.")
        options = BatchOptions(batch, output or "", rows, overwrite, prefix_tokens, prefill_chunk, json_target)
        run_batch(options, answers, opened, runtime, speculation)
        return
    refuse_given(context, ("output", "overwrite"), "goes with --batch; a single answer goes to stdout")
    if ParameterSource.COMMANDLINE in map(context.get_parameter_source, ("rows", "prefix_tokens")):
        raise LucidError("--rows and --prefix-cache-tokens go with --batch; a single prompt runs alone.")
    if len(prompts) != 1:
        raise LucidError(
            "Give the prompt once: PROMPT, --prompt TEXT, --prompt-file FILE, or --prompt-ids 1,2,3."
            + origins(context, given_options(context, _PROMPTS))
        )
    needs_text = bool(answers.stop or answers.bad_words or answers.constraint)
    tokenizer = open_tokenizer(opened, required=prompt_ids is None or needs_text)
    if prompt_ids is not None:
        ids = _listed_ids(prompt_ids)
    else:
        assert tokenizer is not None
        ids = _encode(_read_prompt(prompts[0], is_file=prompt_file is not None), tokenizer)
    if not ids:
        raise LucidError("The prompt is empty: it has no tokens.")
    from lucid_deploy.generation.generate import Generation
    from lucid_deploy.generation.text_stream import AnswerText

    stream = None if tokenizer is None else AnswerText(tokenizer, answers.stop)
    sampling = as_token_ids(answers, tokenizer)
    with progress("Loading the model"):
        session, drafters = speculation.open_session(opened, runtime)
    generation = Generation(session, ids, answers.max_new_tokens, sampling, prefill_chunk, answers.stop_at_eos)
    generation.drafter = None if drafters is None else drafters()
    guides = open_guides(answers, session, tokenizer)
    generation.guide = None if guides is None else guides()
    _generate(generation, stream, opened.manifest.numbers, json_target)


def _encode(text: str, tokenizer: TextTokenizer) -> list[int]:
    if not text.strip():
        raise LucidError("The prompt is empty.")
    note_unknown_words(tokenizer, text)
    return tokenizer.encode(text)


def _listed_ids(text: str) -> list[int]:
    items = [item.strip() for item in text.split(",") if item.strip()]
    for item in items:
        if not re.fullmatch(r"[+-]?[0-9]{1,40}", item):  # int() takes 1_0 too
            raise LucidError(f"--prompt-ids takes whole numbers separated by commas, not {shown(item)}.")
    return [int(item) for item in items]


def _read_prompt(prompt: str, is_file: bool) -> str:
    """Return the prompt; one from stdin or a file without its last line break and Windows' byte order mark."""
    if is_file:
        return read_file("--prompt-file", prompt).removesuffix("\n")
    try:
        text = sys.stdin.read().removeprefix("\ufeff").removesuffix("\n") if prompt == "-" else prompt
        text.encode()
    except UnicodeError as error:
        raise LucidError(f"The prompt is not valid UTF-8 text: {error}.") from error
    return text


def _generate(generation: Generation, stream: AnswerText | None, numbers: str, json_target: str | None) -> None:
    """Run the model; write text as it comes, timings to stderr, JSON to its target; for the target ``-`` JSON alone."""
    shown = json_target != "-"
    ids: list[int] = []
    text = ""

    def write(piece: str) -> None:
        nonlocal text
        text += piece
        if shown:
            click.echo(piece, nl=False)
            sys.stdout.flush()

    started = first = time.perf_counter()
    tokens = iter(generation)
    with progress("Running the prompt") as generation.progress:
        opening = list(itertools.islice(tokens, 1))
        first = time.perf_counter()
    for token in itertools.chain(opening, tokens):
        write(stream.push(token) if stream is not None else ("," if ids else "") + str(token))
        ids.append(token)
        if stream is not None and stream.stopped:
            break
    if stream is not None:
        write(stream.finish())
        generation.finish_reason = "stop" if stream.stopped else generation.finish_reason
    seconds = time.perf_counter() - first
    rate = (len(ids) - 1) / seconds if len(ids) > 1 and seconds > 0 else None
    facts: dict[str, Any] = {
        "text": text if stream is not None else None,
        "ids": ids,
        "prompt_tokens": len(generation.prompt_ids),
        "finish_reason": generation.finish_reason,
        **generation.session.facts(),
        "seconds_to_first_token": first - started if ids else None,
        "tokens_per_second": rate,
        "speculation": None if generation.drafter is None else asdict(generation.drafts),
    }

    def show() -> None:
        click.echo()
        full = f"the context of {generation.session.context_limit} tokens is full"
        parts = [
            f"{facts['prompt_tokens']} prompt token{'' if facts['prompt_tokens'] == 1 else 's'}",
            f"{len(ids)} new ({full if facts['finish_reason'] == 'context' else facts['finish_reason']})",
            f"{1e3 * (first - started):.0f} ms until the first",
            *([] if rate is None else [f"then {rate:.0f} tokens/s"]),
            *([] if generation.drafter is None else [drafts_text(generation.drafts)]),
        ]
        note(f"{', '.join(parts)}; {generation.session.label}, {numbers}")

    write_results(facts, json_target, show)
