"""Train a small model on needles in a haystack, with LUCID or with standard attention, to compare the two.

Five tasks after RULER's, in words of their own: one needle, one among others that resemble it, several values of a key,
several keys at once, and variables that hand on a value (needle_training/texts.py). A training sequence is a text and
questions with their answers, at most 512 tokens in the end. The positions of the model go further, so that longer texts
can be asked about. As in train_recall.py, parameters start arranged and two attention heads are shown where to look for
the first half of the training; --plain leaves out both. Whatever is chosen, LUCID and standard attention have the same
size, data, steps and helps.

With one thread each, the two kinds can train side by side on two cores. Stop a training when you need to: the same
command goes on where it was, and does nothing if all is done. The result is a checkpoint that lucid-deploy exports;
report_needles.py asks exported artifacts.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from needle_training.data import least_context, sequences
from needle_training.progress import Progress
from needle_training.questions import LONGEST_ANSWER
from needle_training.state import Settings, load_state, save_state
from needle_training.words import SIGNS, VOCABULARY
from recall_training.checkpoint import write_checkpoint
from recall_training.data import IGNORED
from recall_training.guide import Guide
from recall_training.start import new_model
from recall_training.words import build_tokenizer
from train_recall import PEAK_RATE, config_json, learning_rate

from lucid_deploy.errors import LucidError
from lucid_deploy.model.lucid import LucidForCausalLM

LAYERS = 4
POSITIONS = 2304  # texts of 2048 tokens and an answer fit


def model_json(settings: Settings) -> dict[str, Any]:
    """Return ``config.json``."""
    return {
        **config_json(settings.attention),
        "vocab_size": len(VOCABULARY),
        "hidden_size": settings.hidden,
        "intermediate_size": 2 * settings.hidden,
        "num_hidden_layers": LAYERS,
        "max_position_embeddings": POSITIONS,
    }


def train(
    settings: Settings, output: Path, save_every: int = 100, stop_after: int | None = None
) -> tuple[LucidForCausalLM, int]:
    """Train a model, or go on with it, and print the progress.

    Args:
        settings: What determines the weights.
        output: Directory, which exists, with the state of an earlier run if there was one.
        save_every: Steps after which the state is written.
        stop_after: Steps of this run after which to stop; None: all.

    Returns:
        The model as it is after this run, and how many steps are done.

    Raises:
        LucidError: The state on disk is damaged or of other settings.
    """
    torch.manual_seed(settings.seed)
    model = new_model(model_json(settings), settings.plain, signs=len(SIGNS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.97), weight_decay=0.05)
    done = load_state(output, settings, model, optimizer)
    last = settings.steps if stop_after is None else min(settings.steps, done + stop_after)
    guide, progress = Guide(model), Progress(settings.steps, done)
    for step in range(done, last):
        drawn = sequences(settings.seed, step, settings.steps, settings.context, settings.batch_tokens)
        loss, right = train_step(model, optimizer, guide, drawn.batch, step, settings)
        progress.report(step + 1, drawn.task, drawn.longest, loss, right)
        if (step + 1) % save_every == 0 or step + 1 == last:
            save_state(output, settings, step + 1, model, optimizer)
    guide.remove()
    return model, last


def train_step(
    model: LucidForCausalLM, optimizer: torch.optim.Optimizer, guide: Guide, batch: Any, step: int, settings: Settings
) -> tuple[float, float]:
    """Take one step; return the loss in nats and the share of answer tokens that was right before it."""
    for group in optimizer.param_groups:
        group["lr"] = PEAK_RATE * learning_rate(step, settings.steps)
    guide.aim(batch)
    logits, _ = model(batch.inputs)  # (batch, tokens, vocab)
    answered = batch.labels != IGNORED
    loss = F.cross_entropy(logits[answered], batch.labels[answered])
    optimizer.zero_grad()
    help_weight = 0.0 if settings.plain else max(0.0, 1 - 2 * step / settings.steps)
    (loss + help_weight * guide.loss).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    right = (logits[answered].argmax(-1) == batch.labels[answered]).float().mean()
    return loss.item(), right.item()


@click.command(help=__doc__)
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="Directory to write to."
)
@click.option("--attention", type=click.Choice(["lucid", "llama"]), default="lucid", show_default=True, help="Which.")
@click.option("--steps", type=click.IntRange(min=1), default=4000, show_default=True, help="Optimizer steps in all.")
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Of parameters and data.")
@click.option(
    "--context",
    type=click.IntRange(min=least_context(), max=POSITIONS),
    default=512,
    show_default=True,
    help="Most tokens of a training sequence.",
)
@click.option(
    "--batch-tokens", type=click.IntRange(min=1), default=4096, show_default=True, help="Most tokens of a step."
)
@click.option("--hidden", type=click.IntRange(min=32), default=128, show_default=True, help="Width of the model.")
@click.option("--plain", is_flag=True, help="Random parameters at the start, and no attention supervision.")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Threads; the sums' order depends on them.",
)
@click.option(
    "--save-every", type=click.IntRange(min=1), default=100, show_default=True, help="Steps between two saved states."
)
@click.option("--stop-after", type=click.IntRange(min=1), help="Stop after so many steps of this run.")
def main(output: Path, threads: int, save_every: int, stop_after: int | None, **options: Any) -> None:
    """Train, or go on, and save."""
    torch.set_num_threads(threads)
    settings, start = Settings(threads=threads, **options), time.monotonic()
    try:
        output.mkdir(parents=True, exist_ok=True)
        model, done = train(settings, output, save_every, stop_after)
    except (LucidError, OSError) as error:
        raise click.ClickException(str(error)) from error
    minutes = (time.monotonic() - start) / 60
    if done < settings.steps:
        print(f"stopped after step {done} of {settings.steps}, {minutes:.1f} minutes; the same command goes on")
        return
    write_checkpoint(model, model_json(settings), build_tokenizer(VOCABULARY), output, LONGEST_ANSWER)
    print(f"trained and saved to {output} in {minutes:.1f} minutes of this run")


if __name__ == "__main__":
    main()
