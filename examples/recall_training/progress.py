"""How training goes: averages on the way, and held-out prompts that are answered."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import numpy as np
import torch

from lucid_deploy.demo import recall
from lucid_deploy.model.lucid import LucidForCausalLM
from recall_training.words import EOS, VOCABULARY, build_tokenizer


class Progress:
    """Prints averages every 50 steps."""

    def __init__(self, steps: int) -> None:
        self.steps, self.start, self.recent = steps, time.monotonic(), []

    def report(self, step: int, longest: int, loss: float, right: float) -> None:
        """Take note of a step: longest list, loss in nats, share of answer tokens that was right."""
        self.recent.append((loss, right))
        if step % 50 and step != self.steps:
            return
        loss, right = np.mean(self.recent, axis=0)
        seconds = time.monotonic() - self.start
        print(
            f"step {step:5d}/{self.steps}  lists up to {longest:2d}  loss {loss:.5f}  "
            f"{right:7.2%} of answer tokens right  {seconds:5.0f} s",
            flush=True,
        )
        self.recent = []


class Curve:
    """Notes how training goes, and answers held-out prompts on the way, for a comparison of two models.

    Attributes:
        steps: For each step: longest list, loss in nats, share of answer tokens that was right.
        held_out: By step: right answers by list length, and prompts.
    """

    def __init__(self, every: int, prompts: int) -> None:
        self.every, self.examples = every, recall.held_out(prompts)
        self.steps: list[tuple[int, float, float]] = []
        self.held_out: dict[int, dict[int, tuple[int, int]]] = {}

    def record(self, step: int, model: LucidForCausalLM, longest: int, loss: float, right: float) -> None:
        """Take note of a step; answer the prompts if it is their turn. Training itself goes on unchanged."""
        self.steps.append((longest, round(loss, 6), round(right, 6)))
        if step % self.every == 0:
            self.held_out[step] = accuracy(model, self.examples)

    def to_json(self) -> dict[str, Any]:
        """Return steps and held-out answers as data for JSON."""
        return {"steps": self.steps, "held_out": self.held_out}


@torch.no_grad()
def accuracy(model: LucidForCausalLM, examples: list[recall.Example]) -> dict[int, tuple[int, int]]:
    """Answer prompts greedily, through prefill and cached decode.

    Returns:
        For each list length, right answers (both words and ``<eos>``) and prompts.
    """
    tokenizer = build_tokenizer()
    by_length = defaultdict(list)
    for example in examples:
        by_length[example.pairs].append(example)
    result = {}
    for pairs, group in sorted(by_length.items()):
        prompts = torch.tensor([tokenizer.encode(e.prompt).ids for e in group])
        wanted = torch.tensor(
            [[*tokenizer.encode(e.answer, add_special_tokens=False).ids, VOCABULARY[EOS]] for e in group]
        )
        logits, past = model(prompts, last_only=True)
        answer = [logits.argmax(-1)]  # (batch, 1) each
        while len(answer) < wanted.shape[1]:
            logits, past = model(answer[-1], past, decode=True)
            answer.append(logits.argmax(-1))
        result[pairs] = (int((torch.cat(answer, dim=1) == wanted).all(dim=1).sum()), len(group))
    return result
