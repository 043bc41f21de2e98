"""Measure how well a model predicts a text compared with another model; there is no gate for the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.parity.metrics import kl_divergence, log_softmax
from lucid_deploy.parity.progress import CallCounter, Progress, Tick
from lucid_deploy.parity.references import ReferenceModels, find_checkpoint
from lucid_deploy.runtimes.session import Array, Session

WINDOW = 512  # at most this many tokens in a window, as in llama.cpp; every window starts from an empty cache
PIECE = 64  # number of tokens whose logits are in memory at once
Score = Callable[[Array], Iterator[Array]]  # takes token ids (N,), yields their logits in pieces (n, vocab)


@dataclass(frozen=True)
class TextCost:
    """How much worse a model predicts a text than its original: the unquantized model, or the same model in float64."""

    tokens: int  # number of predicted tokens: all but the first of every window
    own: float  # the model's perplexity
    original: float  # the original's perplexity
    kl: float  # mean of KL(original ‖ model), in nats per token
    same: float  # share of positions at which both models have the same most likely token
    error: float  # standard error of ln(own / original), about that of the ratio: how much it varies between texts

    @property
    def change(self) -> str:
        """The difference from the original's perplexity, such as ``+0.157 (+0.7% ± 0.2%)``."""
        return f"{self.own - self.original:+.3g} ({self.own / self.original - 1:+.1%} ± {self.error:.1%})"

    def sentence(self) -> str:
        """Say how much perplexity and predictions differ from the original's."""
        return f"{self.change}; KL divergence {self.kl:.2g} nats a token, most likely token the same at {self.same:.1%}"


def windows(ids: Array, limit: int) -> list[Array]:
    """Split at least 2 token ids ``(N,)`` into windows of at most ``WINDOW`` and ``limit``; drop a last single one."""
    if len(ids) < 2:
        raise LucidError(f"The text for the perplexity has {len(ids)} tokens; it takes at least 2.")
    size = min(WINDOW, limit)
    pieces = [ids[start : start + size] for start in range(0, len(ids), size)]
    return [piece for piece in pieces if len(piece) > 1]


def session_logits(session: Session[Any]) -> Score:
    """Return a function that runs token ids from an empty cache and yields the session's logits for all of them."""

    def score(ids: Array) -> Iterator[Array]:
        cache = session.empty_cache()
        yield session.prefill(ids[None, :1], cache)[0]
        for start in range(1, len(ids), PIECE):
            yield session.prefill_all(ids[None, start : start + PIECE], cache)[0]

    return score


def surprisals(score: Score, pieces: list[Array], tick: Tick) -> Array:
    """Return ``−log p`` of every token but each window's first, in nats, float64 ``(tokens,)``."""
    found = [np.zeros(0)]
    for ids in pieces:
        start = 0
        for logits in score(ids[:-1]):  # the token after the last one is unknown
            next_ids = ids[start + 1 : start + 1 + len(logits)]
            found.append(_surprise(logits, next_ids))
            start += len(logits)
        tick()
    return np.concatenate(found)


def _surprise(logits: Array, next_ids: Array) -> Array:
    """Return ``−log p`` of tokens ``(n,)``, given the logits ``(n, vocab)`` of the tokens before them."""
    return -log_softmax(logits)[np.arange(len(next_ids)), next_ids]


def cost_on_text(own: Score, original: Score, pieces: list[Array], tick: Tick) -> TextCost:
    """Return the perplexities of two models on the windows of a text, and how much their predictions differ."""
    own_surprisals, original_surprisals, divergence, same = [np.zeros(0)], [np.zeros(0)], 0.0, 0
    for ids in pieces:
        start = 0
        for mine, theirs in _together(own(ids[:-1]), original(ids[:-1])):
            next_ids = ids[start + 1 : start + 1 + len(theirs)]
            own_surprisals.append(_surprise(mine, next_ids))
            original_surprisals.append(_surprise(theirs, next_ids))
            divergence += float(kl_divergence(mine, theirs).sum())
            same += int((mine.argmax(-1) == theirs.argmax(-1)).sum())
            start += len(theirs)
        tick()
    mine, theirs = np.concatenate(own_surprisals), np.concatenate(original_surprisals)
    count = len(mine)
    error = float((mine - theirs).std() / np.sqrt(count))  # standard error of the log of the perplexities' ratio
    with np.errstate(over="ignore"):
        own_perplexity, other_perplexity = (float(np.exp(each.mean())) for each in (mine, theirs))
    return TextCost(count, own_perplexity, other_perplexity, divergence / count, same / count, error)


def _together(first: Iterator[Array], second: Iterator[Array]) -> Iterator[tuple[Array, Array]]:
    """Yield the logits of both models for the same tokens, in pieces as long as the second model's."""
    held = next(first)
    for theirs in second:
        while len(held) < len(theirs):
            held = np.concatenate([held, next(first)])
        yield held[: len(theirs)], theirs
        held = held[len(theirs) :]


def cost_of(models: ReferenceModels, pieces: list[Array], phase: str) -> TextCost:
    """Return how much worse the candidate predicts a text than PyTorch in float64 on the checkpoint's weights."""
    other = models.layers(models.original if models.quantized else models.reference)
    meter = CallCounter(models.progress, phase, len(pieces))
    return cost_on_text(session_logits(models.candidate), other.logits, pieces, meter.tick)


def held_out_cost(artifact: Artifact, calibration: Path, progress: Progress | None = None) -> TextCost | None:
    """Measure the cost of quantization on the rows of the calibration text that were held out of learning.

    Returns:
        The cost compared with the original checkpoint; None if the artifact is not quantized or no rows were held out.
    """
    from lucid_deploy.export.calibration import held_out_rows
    from lucid_deploy.runtimes import open_session

    quantization = artifact.manifest.quantization
    if quantization is None or not quantization.method.calibration.get("held_out"):
        return None
    source = find_checkpoint(artifact, None)
    rows = held_out_rows(source, calibration, quantization.method.calibration)
    models = ReferenceModels(open_session(artifact), source, artifact, progress)
    return cost_of(models, rows, "Measuring the cost on text that was held out")
