"""``lucid-deploy run``."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lucid_deploy.runtime.generate import Generation
    from lucid_deploy.runtime.session import Session
    from lucid_deploy.runtime.tokenizer import TextTokenizer


@click.command("run")
@click.argument("artifact", type=click.Path())
@click.option("-p", "--prompt", help="The prompt as text; - reads it from stdin.")
@click.option("--prompt-ids", metavar="IDS", help="The prompt as token ids instead, such as 1,15,7.")
@click.option(
    "--runtime",
    type=click.Choice(["auto", "torch", "onnxruntime", "tensorrt"]),
    default="auto",
    show_default=True,
    help="What runs the model; auto is onnxruntime.",
)
@click.option("--device", default="cpu", show_default=True, help="Where it runs: cpu, or cuda with torch or tensorrt.")
@click.option(
    "--provider",
    type=click.Choice(["cpu", "cuda", "tensorrt", "nv-tensorrt-rtx"]),
    default="cpu",
    show_default=True,
    help="With onnxruntime: the execution provider; none is ever replaced by the CPU.",
)
@click.option("-n", "--max-new-tokens", type=int, default=128, show_default=True, help="Most tokens to generate.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy; above, sampling.")
@click.option("--top-k", type=int, default=0, show_default=True, help="Sample among the K most likely; 0 is all.")
@click.option(
    "--top-p", type=float, default=1.0, show_default=True, help="Sample among the most likely up to this sum."
)
@click.option("--seed", type=int, help="Makes sampling repeatable.")
@click.option("--prefill-chunk", type=int, metavar="N", help="Run the prompt N tokens at a time, which bounds memory.")
@click.option("--threads", type=int, help="Threads within an operator; the runtime chooses if not given.")
@click.option("--ignore-eos", is_flag=True, help="Go on after an end-of-sequence token.")
@click.option("--allow-extrapolation", is_flag=True, help="Permit contexts beyond max_position_embeddings.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object (text, ids, timings) instead of a stream.")
def command(
    artifact: str,
    prompt: str | None,
    prompt_ids: str | None,
    runtime: str,
    device: str,
    provider: str,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int | None,
    prefill_chunk: int | None,
    threads: int | None,
    ignore_eos: bool,
    allow_extrapolation: bool,
    as_json: bool,
) -> None:
    """Generate text with an exported artifact.

    The new text goes to stdout as it comes, a line of timings to stderr.

    Example: lucid-deploy run ./artifact --prompt "fox red lamp . ? fox"
    """
    from lucid_deploy.artifact import open_artifact
    from lucid_deploy.cli._console import progress
    from lucid_deploy.runtime import open_session
    from lucid_deploy.runtime.generate import Generation, Sampling

    sampling = Sampling(temperature, top_k, top_p, seed)
    opened = open_artifact(artifact)
    tokenizer = _tokenizer(opened.directory, required=prompt_ids is None)
    ids = _prompt_ids(prompt, prompt_ids, tokenizer)
    with progress("Loading the model"):
        session = open_session(opened, runtime, device, threads, allow_extrapolation, provider)
    generation = Generation(session, ids, max_new_tokens, sampling, prefill_chunk, not ignore_eos)
    _generate(generation, tokenizer, as_json)


def _tokenizer(directory: Path, required: bool) -> TextTokenizer | None:
    from lucid_deploy.runtime.tokenizer import TextTokenizer

    return TextTokenizer(directory) if required or (directory / "tokenizer.json").is_file() else None


def _prompt_ids(prompt: str | None, prompt_ids: str | None, tokenizer: TextTokenizer | None) -> list[int]:
    from lucid_deploy.errors import LucidError

    if (prompt is None) == (prompt_ids is None):
        raise LucidError("Give the prompt once: --prompt TEXT, or --prompt-ids 1,2,3.")
    if prompt_ids is not None:
        try:
            ids = [int(item) for item in prompt_ids.split(",") if item.strip()]
        except ValueError as error:
            raise LucidError(f"--prompt-ids takes whole numbers separated by commas, not {prompt_ids!r}.") from error
    else:
        assert prompt is not None and tokenizer is not None
        try:
            text = sys.stdin.read() if prompt == "-" else prompt
            text.encode()
        except UnicodeError as error:
            raise LucidError(f"The prompt is not valid text: {error}.") from error
        if not text.strip():
            raise LucidError("The prompt is empty.")
        ids = tokenizer.encode(text)
    if not ids:
        raise LucidError("The prompt is empty: it has no tokens.")
    return ids


def _generate(generation: Generation, tokenizer: TextTokenizer | None, as_json: bool) -> None:
    from lucid_deploy.cli._console import console_err, progress, write_json
    from lucid_deploy.runtime.tokenizer import TextStream

    stream = TextStream(tokenizer) if tokenizer is not None else None
    ids: list[int] = []
    started = time.perf_counter()
    tokens = iter(generation)
    with progress("Running the prompt") as generation.progress:
        opening = list(itertools.islice(tokens, 1))
    first = time.perf_counter()
    for token in itertools.chain(opening, tokens):
        piece = stream.push(token) if stream is not None else ("," if ids else "") + str(token)
        ids.append(token)
        if not as_json:
            click.echo(piece, nl=False)
            sys.stdout.flush()
    if stream is not None and not as_json:
        click.echo(stream.rest(), nl=False)
    ended = time.perf_counter()
    facts: dict[str, Any] = {
        "text": stream.text if stream is not None else None,
        "ids": ids,
        "prompt_tokens": len(generation.prompt_ids),
        "finish_reason": generation.finish_reason,
        "runtime": generation.session.runtime,
        "provider": generation.session.provider,
        "dtype": generation.session.dtype,
        "seconds_to_first_token": first - started if ids else None,
        "tokens_per_second": (len(ids) - 1) / (ended - first) if len(ids) > 1 and ended > first else None,
    }
    if as_json:
        write_json(facts, "-")
        return
    click.echo()
    rate = facts["tokens_per_second"]
    console_err.print(
        f"{facts['prompt_tokens']} prompt tokens, {len(ids)} new ({facts['finish_reason']}), "
        f"{1e3 * (first - started):.0f} ms until the first"
        + (f", then {rate:.0f} tokens/s" if rate is not None else "")
        + f"; {_runtime(generation.session)}, {facts['dtype']}",
        soft_wrap=True,
    )


def _runtime(session: Session[Any]) -> str:
    """Name the runtime, and the provider where one was chosen."""
    return session.runtime if session.provider in (None, "cpu") else f"{session.runtime} ({session.provider})"
