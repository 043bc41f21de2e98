"""How training goes: averages on the way, and the time that is left."""

from __future__ import annotations

import time
from collections import defaultdict

import numpy as np

from needle_training.texts import KINDS


class Progress:
    """Prints averages every few steps, and how long the rest takes at the speed since the line before.

    Args:
        steps: Of the training in all.
        done: Steps that an earlier run has done.
        every: Steps between two lines.
    """

    def __init__(self, steps: int, done: int, every: int = 50) -> None:
        self.steps, self.every = steps, every
        self.start = self.last = time.monotonic()
        self.last_step = done
        self.losses: list[float] = []
        self.right: dict[str, list[float]] = defaultdict(list)

    def report(self, step: int, task: str, longest: int, loss: float, right: float) -> None:
        """Take note of a step: its task, longest sequence, loss in nats, share of answer tokens that was right."""
        self.losses.append(loss)
        self.right[task].append(right)
        if step % self.every and step != self.steps:
            return
        now = time.monotonic()
        left = (now - self.last) / (step - self.last_step) * (self.steps - step)
        shares = "  ".join(f"{task} {np.mean(self.right[task]):.0%}" for task in KINDS if self.right[task])
        print(
            f"step {step:5d}/{self.steps}  up to {longest} tokens  loss {np.mean(self.losses):.4f}  right: {shares}  "
            f"{now - self.start:.0f} s, about {left / 60:.0f} min left",
            flush=True,
        )
        self.last, self.last_step, self.losses = now, step, []
        self.right.clear()
