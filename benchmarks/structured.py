"""Cost of constrained answers: steps of 8 rows that follow a schema, a grammar or an expression, beside free ones.

The medium model (hidden 1024, 8 layers, random weights), a static cache, a byte-level vocabulary of 32,000 tokens of
random letters. Two batchers over one session, one with constraints and one without, take turns of one step each, so
that other work on the machine meets both; a round is many such pairs, and its figure is the ratio of the two medians.
Time on the clock is what users wait for; processor time, of all threads, is what the masks cost, and other work on the
machine disturbs it less. Nothing is sampled, which makes the rest of a step cheap and the share of the masks large. No
constraint lets its answers end before the last step.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import write_random_checkpoint, write_result
from tokenizers import Tokenizer, decoders, models

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.batching import Batcher, Request
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.generation.constraint import Constraint, from_grammar, from_json_schema, from_regex
from lucid_deploy.generation.guide import GuideFactory
from lucid_deploy.generation.text_stream import byte_alphabet
from lucid_deploy.runtimes import Session, open_session

ROWS, CONTEXT, ROUNDS = 8, 32, 5
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "mail": {"type": "string"}},
    "required": ["name", "age", "mail"],
    "additionalProperties": False,
}
CONSTRAINTS: dict[str, Constraint] = {
    "schema": from_json_schema({"type": "array", "items": PERSON, "minItems": 1000}),
    "any JSON": from_json_schema({"type": "array", "minItems": 1000}),
    "expression": from_regex("([A-Z][a-z]{2,9}( [a-z]{2,9}){3,9}\\.\\n?){1000}"),
    "grammar": from_grammar('start: pair~1000\npair: NAME "=" NUMBER ";"\nNAME: /[a-z]{3,12}/\nNUMBER: /[0-9]{1,6}/'),
}


def write_tokenizer(directory: Path, size: int) -> None:
    """Write a vocabulary of all bytes and random words; half of them have a space in front."""
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz") * 4 + list("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789\"'{}[]:,.()-_/\\")
    words = ["<s>", "</s>", *sorted(byte_alphabet())]
    known = set(words)
    while len(words) < size:
        word = "Ġ" * int(rng.integers(2)) + "".join(rng.choice(letters, rng.integers(2, 8)))
        if word not in known:
            known.add(word)
            words.append(word)
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(directory / "tokenizer.json"))


def started(session: Session[Any], guides: GuideFactory, constraint: Constraint | None, steps: int) -> Batcher:
    """Return a batcher whose rows all decode."""
    rng = np.random.default_rng(1)
    batcher = Batcher(session, rows=ROWS, guides=guides)
    for _ in range(ROWS):
        prompt = rng.integers(session.config.vocab_size, size=CONTEXT).tolist()
        batcher.submit(Request(prompt, steps + 2 * ROWS, stop_at_eos=False, constraint=constraint))
    while len(batcher.step()) != ROWS:  # none is in its prompt
        pass
    return batcher


def measure(session: Session[Any], guides: GuideFactory, constraint: Constraint, steps: int) -> dict[str, Any]:
    """Return step times of both in milliseconds, and by how much one with masks is longer."""
    most = steps * ROUNDS
    pair = {"free": started(session, guides, None, most), "masked": started(session, guides, constraint, most)}
    rounds, work = [], {"free": [], "masked": []}
    for _ in range(ROUNDS):
        seconds: dict[str, list[float]] = {"free": [], "masked": []}
        for step in range(steps):
            for name in ("free", "masked") if step % 2 else ("masked", "free"):
                began, busy = time.perf_counter(), time.process_time()
                events = pair[name].step()
                seconds[name].append(time.perf_counter() - began)
                work[name].append(time.process_time() - busy)
                assert len(events) == ROWS
        rounds.append({name: 1e3 * statistics.median(times) for name, times in seconds.items()})
    more = [100 * (item["masked"] / item["free"] - 1) for item in rounds]
    extra = statistics.median(b - a for a, b in zip(work["free"], work["masked"], strict=True))
    return {
        "free_ms": statistics.median(item["free"] for item in rounds),
        "masked_ms": statistics.median(item["masked"] for item in rounds),
        "more_percent": statistics.median(more),
        "more_percent_of_rounds": [round(value, 2) for value in more],
        "free_processor_ms": 1e3 * statistics.median(work["free"]),
        "more_processor_ms": 1e3 * extra,
        "more_processor_percent": 100 * extra / statistics.median(work["free"]),
        "mask_ms": mask_time(guides, constraint),
    }


def mask_time(guides: GuideFactory, constraint: Constraint) -> float:
    """Return the median time of one mask in milliseconds, alone and waited for, over tokens drawn at random."""
    rng, guide, seconds = np.random.default_rng(2), guides.open(constraint, may_end=False).result(), []
    for _ in range(100):
        allowed = guide.allowed()
        assert allowed is not None
        token = int(rng.choice(np.flatnonzero(allowed)))
        began = time.perf_counter()
        guide.advance(token)
        guide.allowed()
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds)


def make_artifact(root: Path) -> Path:
    """Write the checkpoint, its tokenizer and the artifact."""
    checkpoint = write_random_checkpoint(root / "checkpoint", "medium")
    write_tokenizer(checkpoint, 32_000)
    export(checkpoint, root / "artifact", ExportOptions(cache="static"))
    return root / "artifact"


@click.command()
@click.option("--steps", default=20, show_default=True, help="Steps of each batcher in a round.")
@click.option("--artifact", type=click.Path(path_type=Path), help="One that an earlier run made; else it is made anew.")
def main(steps: int, artifact: Path | None) -> None:
    """Measure, and write benchmarks/results/structured.json."""
    with tempfile.TemporaryDirectory() as scratch:
        artifact = artifact or make_artifact(Path(scratch))
        session, tokenizer = open_session(artifact, threads=2), TextTokenizer(artifact)
        guides = GuideFactory(tokenizer, session.config.vocab_size, list(session.config.eos_token_ids))
        results = {}
        for name, constraint in CONSTRAINTS.items():
            results[name] = measure(session, guides, constraint, steps)
            print(name, results[name], flush=True)
    write_result("structured", {"model": "medium", "rows": ROWS, "context": CONTEXT, "results": results})


if __name__ == "__main__":
    main()
