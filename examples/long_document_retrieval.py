"""Read a long document once, ask many questions about it: the cache of the document is kept, and forked per question.

The document is a list of facts that the bundled model was trained to recall from (28 entries fill its context; a model
made for longer contexts takes longer documents). It is read in chunks, which bounds memory whatever the length; its
cache goes to a file, so that a later run starts where this one stopped. A question costs its own few tokens.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from lucid_deploy.artifact import open_artifact
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.demo import recall
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.cache_files import load_cache, save_cache


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--cache", "file", type=click.Path(path_type=Path), required=True, help="File for the document's cache.")
@click.option("--chunk", type=int, default=64, show_default=True, help="Tokens of the document that run at once.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the document.")
def main(artifact: Path, file: Path, chunk: int, seed: int) -> None:
    """Ask about every entry of a document."""
    session, tokenizer = open_session(open_artifact(artifact)), TextTokenizer(artifact)
    document, questions = make_document(seed)
    ids = tokenizer.encode(document)

    started = time.perf_counter()
    if file.exists():
        cache, stored = load_cache(session, file)
        if stored != ids:
            raise click.ClickException(f"{file} holds another document; name another file.")
    else:
        cache = session.empty_cache()
        session.prefill(np.array([ids]), cache, chunk=chunk)
        save_cache(session, cache, file, ids)
    print(f"Document: {cache.length} tokens, {1e3 * (time.perf_counter() - started):.0f} ms")

    right, started = 0, time.perf_counter()
    for question, answer in questions.items():
        fork = session.fork(cache)  # the document's rows are read, never written: every question starts from them
        new = np.array([tokenizer.encode(question, add_special_tokens=False)])
        right += answer_of(session, fork, new, tokenizer) == answer
    print(f"{right} of {len(questions)} answers right, {1e3 * (time.perf_counter() - started):.0f} ms in all")
    if right < 0.9 * len(questions):
        raise SystemExit(1)


def make_document(seed: int) -> tuple[str, dict[str, str]]:
    """Return a list of facts as text, and a question for each of them with its answer."""
    lists = recall.sample_lists(np.random.default_rng(seed), 28, 1, 1)
    facts = {
        recall.ANIMALS[animal]: f"{recall.ADJECTIVES[adjective]} {recall.THINGS[thing]}"
        for animal, adjective, thing in zip(lists.animals[0], lists.adjectives[0], lists.things[0], strict=True)
    }
    document = ", ".join(f"{animal} {recall.VERB} {what}" for animal, what in facts.items())
    return document, {f". {animal} {recall.VERB}": what for animal, what in facts.items()}


def answer_of(session: Any, cache: Any, new: Any, tokenizer: TextTokenizer) -> str:
    """Continue greedily to the end-of-sequence token."""
    logits, tokens = session.prefill(new, cache), []
    while len(tokens) < 8:
        token = int(logits[0, -1].argmax())
        if token in session.config.eos_token_ids:
            break
        tokens.append(token)
        logits = session.decode(np.array([[token]]), cache)
    return tokenizer.decode(tokens)


if __name__ == "__main__":
    main()
