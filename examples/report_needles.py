"""Ask exported pairs of models, trained by train_needles.py, and say how they differ.

Each pair is an artifact with LUCID and one with standard attention, of one seed. All are asked the same questions of
five tasks at several lengths, greedily. An answer counts only if all of it is right. Scores have Wilson's 95 %
interval; the difference of a pair and the mean over pairs have that of the paired bootstrap. The intervals are about
questions. How much another training would change shows in the differences of each pair.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
from needle_training.comparison import Cell, comparison_table
from needle_training.questions import LONGEST_ANSWER, SEED, needle_questions
from needle_training.texts import KINDS
from rich.console import Console

from lucid_deploy.artifact import open_artifact
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.evaluation import Report, evaluate
from lucid_deploy.files import atomic_write
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.options import ABLATIONS

LENGTHS = (256, 512, 1024, 2048)
ATTENTIONS = ("lucid", "llama")


class Clock:
    """Says how far the work is, by the tokens of its prompts."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.done, self.start = tokens, 0, time.monotonic()

    def report(self, name: str, report: Report) -> None:
        """Print a score, and the time that is left."""
        settings = report.task.settings
        self.done += settings["length"] * settings["limit"]
        left = (time.monotonic() - self.start) / self.done * (self.tokens - self.done)
        score = f"{report.score.right} of {report.score.count} right"
        print(f"{name}  {report.task.name} {settings['length']}: {score}; about {left / 60:.0f} min left", flush=True)


def ask(
    directory: Path, wanted: list[tuple[str, int]], limit: int, seed: int, options: dict[str, Any], clock: Clock
) -> list[Report]:
    """Put all questions to an artifact.

    Args:
        directory: The artifact.
        wanted: Tasks and lengths.
        limit: Questions of each.
        seed: Of the questions.
        options: Of the runtime.
        clock: Is told of every report.
    """
    session, tokenizer = open_session(directory, **options), TextTokenizer(directory)
    asked = [needle_questions(tokenizer, task, length, limit, seed) for task, length in wanted]
    reports: list[Report] = []
    for questions in asked:
        reports.append(evaluate(session, tokenizer, questions))
        clock.report(directory.name, reports[-1])
    session.close()
    return reports


def check_pairs(pairs: list[tuple[Path, Path]], longest: int) -> None:
    """Check, before anything is asked, that each pair is LUCID, then standard attention, and takes the longest prompts.

    Raises:
        LucidError: Another attention, too short a context, or a directory that is no artifact.
    """
    for pair in pairs:
        for directory, wanted in zip(pair, ATTENTIONS, strict=True):
            config = open_artifact(directory).config
            if config.attention_type != wanted:
                raise LucidError(f"{directory} has attention {config.attention_type}; a pair is lucid, then llama.")
            if longest + LONGEST_ANSWER > config.max_position_embeddings:
                raise LucidError(
                    f"Prompts of {longest} tokens and their answers exceed the context of {directory}, which is "
                    f"{config.max_position_embeddings}. Ask for shorter --lengths."
                )


def parse_lengths(_context: click.Context, _parameter: click.Parameter, text: str) -> list[int]:
    """Read ``256,512``."""
    try:
        lengths = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 256,512.") from error
    return lengths


@click.command(help=__doc__)
@click.option(
    "--pair",
    "pairs",
    type=(click.Path(path_type=Path, exists=True), click.Path(path_type=Path, exists=True)),
    multiple=True,
    required=True,
    metavar="LUCID STANDARD",
    help="Artifacts of one seed; may be repeated.",
)
@click.option(
    "--lengths", default=",".join(map(str, LENGTHS)), show_default=True, callback=parse_lengths, help="In tokens."
)
@click.option("--task", "tasks", type=click.Choice(list(KINDS)), multiple=True, help="Some of the tasks only.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Questions of each.")
@click.option("--seed", type=click.IntRange(min=0), default=SEED, show_default=True, help="Of the questions.")
@click.option("--runtime", default="onnxruntime", show_default=True, help="What runs the artifacts.")
@click.option(
    "--ablate", type=click.Choice(ABLATIONS), help="Leave out a part of LUCID attention; with --runtime torch."
)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True, help="Of the runtime.")
@click.option("--json", "output", type=click.Path(path_type=Path, dir_okay=False), help="Write everything to a file.")
def main(
    pairs: list[tuple[Path, Path]],
    lengths: list[int],
    tasks: tuple[str, ...],
    limit: int,
    seed: int,
    runtime: str,
    ablate: str | None,
    threads: int,
    output: Path | None,
) -> None:
    """Ask, compare, print, and write."""
    wanted = [(task, length) for task in tasks or KINDS for length in lengths]
    clock = Clock(2 * len(pairs) * limit * sum(length for _, length in wanted))
    standard = {"runtime": runtime, "threads": threads}
    sides = ({**standard, "ablate": ablate}, standard)
    try:
        check_pairs(pairs, max(lengths))
        reports = [
            [
                ask(directory, wanted, limit, seed, options, clock)
                for directory, options in zip(pair, sides, strict=True)
            ]
            for pair in pairs
        ]
    except (LucidError, CheckFailed) as error:
        raise click.ClickException(str(error)) from error
    cells = [
        Cell(task, length, [(lucid[i], standard[i]) for lucid, standard in reports])
        for i, (task, length) in enumerate(wanted)
    ]
    Console(highlight=False, width=120).print(comparison_table(cells))
    if output is not None:
        names = [[directory.name for directory in pair] for pair in pairs]
        data = {"pairs": names, "limit": limit, "seed": seed, "runtime": runtime, "ablate": ablate}
        data["cells"] = [cell.to_dict() for cell in cells]
        atomic_write(output, (json.dumps(data, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
