"""Quality of answers: the bundled model in every precision, and LUCID beside standard attention.

Checkpoints of a fair pair come from examples/train_recall.py with --curve, once with --attention lucid and once with
--attention llama, all else equal:

    python benchmarks/quality.py --pair lucid-1 llama-1 --curve lucid-1.json --curve llama-1.json

Hybrids, trained with --hybrid, go into a file of their own: --no-precisions --result quality_hybrid.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from common import write_result

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.demo.recall import MAX_PAIRS
from lucid_deploy.evaluation import Report, Task, compare, evaluate, needles_task, recall_task
from lucid_deploy.model.checkpoint import DEMO, Checkpoint, load_model, resolve
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.session import Session
from lucid_deploy.runtimes.torch.session import TorchSession

PRECISIONS = {  # options of lucid-deploy export
    "float32": [],
    "float16": ["--dtype", "float16"],
    "int8 weights": ["--quantize", "int8"],
    "int4 weights": ["--quantize", "int4"],
    "int8 cache": ["--cache-dtype", "int8"],
    "float16 cache": ["--cache-dtype", "float16"],
    "int4 weights, int8 cache": ["--quantize", "int4", "--cache-dtype", "int8"],
}
LENGTHS = [64, 128, 256, 384, 500]  # tokens of needles' texts; training sequences have up to 201
KNOWN = {"recall": {"limit": 200}, "needles": {"needles": 4, "lengths": LENGTHS, "limit": 200}}


def tasks(tokenizer: TextTokenizer, context: int, recall_prompts: int = 200) -> dict[str, Task]:
    """Return the tasks that every model has to answer."""
    return {
        "recall": recall_task(tokenizer, recall_prompts),
        "needles": needles_task(tokenizer, context, **KNOWN["needles"]),  # type: ignore[arg-type]
    }


def ask(session: Session[Any], tokenizer: TextTokenizer, questions: dict[str, Task]) -> dict[str, Report]:
    """Ask a model the questions of each task; return its reports by task."""
    return {name: evaluate(session, tokenizer, task, batch=8) for name, task in questions.items()}


def brief(report: Report) -> dict[str, Any]:
    """Return a report's overall score, and its score for each length of prompts."""
    label = "pairs" if report.task.name == "recall" else "length"
    by = {str(key[0]): score.to_dict() for key, score in report.by(label).items()}
    return {**report.score.to_dict(), "settings": report.task.settings, "by": {label: by}}


def precisions() -> dict[str, Any]:
    """Export the bundled model in every precision, and ask each export the same questions."""
    tokenizer = TextTokenizer(resolve(DEMO))
    results: dict[str, Any] = {}
    reference: dict[str, Report] | None = None
    with tempfile.TemporaryDirectory() as scratch:
        for name, options in PRECISIONS.items():
            target = Path(scratch) / name.replace(" ", "-").replace(",", "")
            command = [sys.executable, "-m", "lucid_deploy.cli", "export", DEMO, "--output", str(target), *options]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            session = open_session(target, threads=1)
            reports = ask(session, tokenizer, tasks(tokenizer, session.config.max_position_embeddings))
            reference = reference or reports
            results[name] = {
                "options": " ".join(options),
                "weights_bytes": (target / "weights.bin").stat().st_size,
                **{
                    task: {
                        **brief(report),
                        "relative_accuracy": compare(report, reference[task]).relative,
                        "answers_that_differ": len(compare(report, reference[task]).disagreements),
                    }
                    for task, report in reports.items()
                },
            }
            print_line(name, reports)
    return results


def attentions(pairs: list[tuple[Path, Path]]) -> list[dict[str, Any]]:
    """Ask both checkpoints of each pair (LUCID, standard attention) the same questions, in PyTorch in float32."""
    results = []
    for pair in pairs:
        reports = []
        for directory, kind in zip(pair, ("lucid", "llama"), strict=True):
            checkpoint = Checkpoint(directory)
            if checkpoint.config.attention_type != kind:
                raise click.UsageError(
                    f"{directory} has {checkpoint.config.attention_type} attention; a pair is LUCID, then standard."
                )
            session = TorchSession(load_model(checkpoint))
            tokenizer = TextTokenizer(directory)
            questions = tasks(tokenizer, session.config.max_position_embeddings, recall_prompts=2000)
            reports.append(ask(session, tokenizer, questions))
            print_line(f"{directory.name}, {kind}", reports[-1])
        both = {
            name: {
                "lucid": brief(reports[0][name]),
                "standard": brief(reports[1][name]),
                "only_lucid_right": compare(reports[0][name], reports[1][name]).only_right,
                "only_standard_right": compare(reports[0][name], reports[1][name]).only_other_right,
            }
            for name in reports[0]
        }
        results.append({"names": [directory.name for directory in pair], **both})
    return results


def summary(curve: dict[str, Any]) -> dict[str, Any]:
    """Shorten what examples/train_recall.py --curve wrote: averages over 100 steps, and held-out accuracy."""
    course = curve.pop("curve", curve)
    steps = np.array(course.pop("steps"), dtype=np.float64)  # (steps, 3): longest list, loss, share right
    held_out = {
        int(step): round(sum(right for right, _ in by.values()) / sum(count for _, count in by.values()), 4)
        for step, by in course.pop("held_out").items()
    }
    means = steps[: len(steps) // 100 * 100].reshape(-1, 100, 3).mean(axis=1)
    full = np.flatnonzero(steps[:, 0] >= MAX_PAIRS)
    lasting = [step for step in held_out if all(value >= 0.99 for later, value in held_out.items() if later >= step)]
    return {
        **curve,
        "steps": len(steps),
        "loss": [round(float(value), 5) for value in means[:, 1]],
        "right": [round(float(value), 5) for value in means[:, 2]],
        "longest_list": int(steps[-1, 0]),
        "first_step_with_longest_lists": int(full[0]) + 1 if len(full) else None,
        "held_out": held_out,
        "from_here_99_percent": min(lasting, default=None),
    }


def print_line(name: str, reports: dict[str, Report]) -> None:
    """Print a model's scores in a line."""
    lengths = reports["needles"].by("length").items()
    needles = "  ".join(f"{key[0]}: {score.accuracy:.1%}" for key, score in lengths)
    print(f"{name:26s} recall {reports['recall'].score.accuracy:.2%}   needles {needles}", flush=True)


@click.command(help=__doc__)
@click.option(
    "--pair",
    "pairs",
    type=(click.Path(path_type=Path, exists=True), click.Path(path_type=Path, exists=True)),
    multiple=True,
    metavar="LUCID STANDARD",
    help="Checkpoints of one seed; may be repeated.",
)
@click.option(
    "--curve",
    "curves",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="What the training script wrote with --curve; may be repeated.",
)
@click.option(
    "--precisions/--no-precisions", "all_precisions", default=True, help="Whether to measure the bundled model."
)
@click.option("--result", default="quality", show_default=True, help="Name of the file in benchmarks/results.")
def main(pairs: list[tuple[Path, Path]], curves: list[Path], all_precisions: bool, result: str) -> None:
    """Measure, print, and write the results."""
    torch.set_num_threads(1)
    data: dict[str, Any] = {"precisions": precisions()} if all_precisions else {}
    if pairs:
        data["attentions"] = attentions(pairs)
    if curves:
        data["training"] = {path.stem: summary(json.loads(path.read_text())) for path in curves}
    write_result(result, data)


if __name__ == "__main__":
    main()
