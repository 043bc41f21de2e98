"""What verifying drafts costs, and what speculative decoding gains and loses, at hidden 1024 and batch 1.

First, a step that verifies 2 to 16 tokens is timed beside a step that decodes one. Then answers are decoded, token by
token and with drafts that are looked up. Random weights copy nothing, so the answers are given: all runs as if the
model had chosen their tokens. The answers are

    recall   entries of a list, asked for one after the other, for all of the list
    needles  the answers to questions about facts in a long text, each alone: two words of the bundled model
    numbers  the same in English, where an answer has five digits, each a token, as they are for most tokenizers
    text     tokens without any repetition: what drafts cost where they are of no use

Plain decoding and speculation take turns in one process; ratios are those of a round.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import write_random_checkpoint, write_result

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.bench.contenders import Contender
from lucid_deploy.bench.report import paired_ratio
from lucid_deploy.bench.runner import WorkerProcess
from lucid_deploy.demo import recall
from lucid_deploy.evaluation.needles import needles_task
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.model.checkpoint import DEMO, resolve
from lucid_deploy.runtimes.options import KERNELS, RuntimeOptions

Texts = list[tuple[list[int], list[int]]]  # prompts and answers, as token ids
COUNTS = (2, 4, 8, 16)


class OneTokenEach:
    """A tokenizer for which every word, digit and sign is a token; it numbers them in order of first use."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text."""
        parts = re.findall(r"[A-Za-z]+|\d|[^\w\s]", text)
        return [self._ids.setdefault(part, len(self._ids) + 500) for part in parts]

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids, with spaces in between."""
        parts = {number: part for part, number in self._ids.items()}
        return " ".join(parts[each] for each in ids)


def texts(length: int, answers: int, seed: int = 0) -> dict[str, Texts]:
    """Return prompts and answers by task.

    Args:
        length: Tokens of the texts with needles, and of the text without repetition.
        answers: Tokens of the answer to the text without repetition.
        seed: Equal seeds give equal texts.
    """
    tokenizer, rng = TextTokenizer(resolve(DEMO)), np.random.default_rng(seed)
    asked = needles_task(tokenizer, None, needles=4, lengths=[length], limit=4, seed=seed).questions
    digits = OneTokenEach()
    numbered = needles_task(digits, None, needles=4, lengths=[length], limit=4, seed=seed).questions
    example = max(recall.held_out(40, seed), key=lambda each: each.pairs)
    entries = [entry.strip() for entry in example.prompt.rpartition(".")[0].split(",")]
    listed = ", ".join(entries[i] for i in rng.permutation(len(entries)))
    prompt = example.prompt.rpartition(".")[0] + "."
    other = rng.permutation(30000)[: length + answers] + 500
    return {
        "recall": [(tokenizer.encode(prompt), tokenizer.encode(listed)[1:])],
        "needles": [(tokenizer.encode(each.prompt), tokenizer.encode(f"{each.answer}.")[1:]) for each in asked],
        "numbers": [(digits.encode(each.prompt), digits.encode(f"{each.answer}.")) for each in numbered],
        "text": [(other[:length].tolist(), other[length:].tolist())],
    }


def verifying(worker: WorkerProcess, context: int, rounds: int, steps: int) -> dict[str, Any]:
    """Return milliseconds of a decode step and of steps that verify, and ratios of these to it, round by round."""
    found: dict[int, list[float]] = {count: [] for count in (1, *COUNTS)}
    for turn in range(rounds + 1):  # the first warms up
        for count, seconds in found.items():
            if count == 1:
                answer = worker.ask("decode", batch=1, context=context, steps=steps)
            else:
                answer = worker.ask("verify", context=context, tokens=count, steps=steps)
            seconds += [answer["seconds"]] if turn else []
    medians = {count: 1e3 * float(np.median(seconds)) for count, seconds in found.items()}
    over = {count: paired_ratio(found[count], found[1]) for count in COUNTS}
    return {"context": context, "median_ms": medians, "over_decode": over}


def following(worker: WorkerProcess, task: str, of: Texts, rounds: int) -> dict[str, Any]:
    """Return tokens per second after the prompt without and with speculation, and the gain, round by round."""
    plain, ahead, counts = [], [], {"proposed": 0, "accepted": 0}
    for turn in range(rounds + 1):
        both = {
            on: [worker.ask("follow", prompt=p, answer=a, speculate=on) for p, a in of]
            for on in ((False, True) if turn % 2 else (True, False))
        }
        if turn:
            plain.append(sum(each["seconds"] for each in both[False]))
            ahead.append(sum(each["seconds"] for each in both[True]))
        counts = {name: sum(each[name] for each in both[True]) for name in counts}
    tokens = sum(len(answer) for _, answer in of)
    rates = {"plain": tokens / float(np.median(plain)), "speculative": tokens / float(np.median(ahead))}
    return {
        "task": task,
        "tokens": tokens,
        "tokens_per_second": rates,
        "gain": paired_ratio(plain, ahead),
        **counts,
    }


@click.command(help=__doc__)
@click.option("--shape", type=click.Choice(["medium", "long"]), default="medium", show_default=True)
@click.option("--cache", type=click.Choice(["growing", "static"]), default="static", show_default=True)
@click.option("--context", default=8192, show_default=True, help="Tokens of context to verify at.")
@click.option("--length", default=2048, show_default=True, help="Tokens of the long texts.")
@click.option("--answers", default=128, show_default=True, help="Tokens of the answer without repetition.")
@click.option("--rounds", default=7, show_default=True, help="Rounds that count.")
@click.option("--steps", default=8, show_default=True, help="Steps of a turn.")
@click.option("--threads", default=2, show_default=True)
@click.option("--kernels", type=click.Choice(KERNELS), default="auto", show_default=True)
@click.option("--write/--no-write", default=True, help="Whether to write results: speculation[_growing].json.")
def main(
    shape: str,
    cache: str,
    context: int,
    length: int,
    answers: int,
    rounds: int,
    steps: int,
    threads: int,
    kernels: str,
    write: bool,
) -> None:
    """Measure, print, and write the results."""
    with tempfile.TemporaryDirectory() as scratch:
        source = write_random_checkpoint(Path(scratch) / "checkpoint", shape)
        artifact = export(source, Path(scratch) / "artifact", ExportOptions(cache=cache))
        options = RuntimeOptions(threads=threads, kernels=kernels)
        contender = Contender(shape, "artifact", str(artifact.directory), options)
        vocabulary = artifact.config.vocab_size
        with WorkerProcess(contender, [str(Path(__file__).with_name("speculation_worker.py"))]) as worker:
            facts = worker.ask("open", **asdict(contender))
            verified = verifying(worker, context, rounds, steps)
            for count, ratio in verified["over_decode"].items():
                print(
                    f"{context} tokens: {count:2d} verified in {verified['median_ms'][count]:7.1f} ms, "
                    f"{ratio['median']:.2f} times a decode step ({ratio['min']:.2f}-{ratio['max']:.2f})"
                )
            followed = []
            for task, of in texts(length, answers).items():
                known = [([t % vocabulary for t in p], [t % vocabulary for t in a]) for p, a in of]
                followed.append(found := following(worker, task, known, rounds))
                rates = found["tokens_per_second"]
                print(
                    f"{task:8s} {rates['plain']:6.1f} tokens/s plain, {rates['speculative']:6.1f} speculative: "
                    f"{found['gain']['median']:.2f} times "
                    f"({found['gain']['min']:.2f}-{found['gain']['max']:.2f}), "
                    f"{found['accepted']} of {found['proposed']} drafted tokens accepted"
                )
    if write:
        settings = {"shape": shape, "cache": cache, "threads": threads, "kernels": facts["kernels"]}
        name = "speculation" if cache == "static" else f"speculation_{cache}"
        write_result(name, {"settings": settings, "verifying": verified, "following": followed})


if __name__ == "__main__":
    main()
