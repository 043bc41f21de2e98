"""Run a session through a scenario and record what it computed, position by position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lucid_deploy.errors import CheckFailed
from lucid_deploy.parity.scenarios import ONE_SHOT, Scenario, Schedule
from lucid_deploy.runtime.session import Array, Cache, Session

Tick = Callable[[], None]

KINDS = ("K", "Y", "logits")  # the order in which a layer computes them, and failures are named


class TensorId(NamedTuple):
    """Names one tensor. Sorts in the order of computation: layer, K before Y, logits last.

    Attributes:
        layer: Index of the layer; for the logits, the number of layers.
        kind: Index into ``KINDS``.
    """

    layer: int
    kind: int

    @property
    def accumulated(self) -> bool:
        """Whether rows are sums over those before them, which sets the scale of their errors."""
        return KINDS[self.kind] == "Y"

    @property
    def is_logits(self) -> bool:
        """Whether these are the logits."""
        return KINDS[self.kind] == "logits"

    def __str__(self) -> str:
        """``layer 3 Y`` or ``logits``."""
        return "logits" if self.is_logits else f"layer {self.layer} {KINDS[self.kind]}"


@dataclass(frozen=True)
class Rows:
    """One tensor, a row for each position.

    Attributes:
        values: ``(B, T, F)``; F is key/value heads times head width, or the vocabulary.
        start: Position in the sequence (padding not counted) of the first row.
    """

    values: Array
    start: int = 0


@dataclass(frozen=True)
class Trace:
    """What a session computed: K and Y of every layer at all positions, logits from the last prompt token on.

    Attributes:
        tensors: In the order of computation.
    """

    tensors: dict[TensorId, Rows]


def record(session: Session[Any], scenario: Scenario, schedule: Schedule = ONE_SHOT, tick: Tick | None = None) -> Trace:
    """Feed a scenario, the forced tokens as decode steps, and record everything.

    Args:
        session: Any runtime.
        scenario: The tokens.
        schedule: How the prompt is fed.
        tick: Called after every call of the session.

    Raises:
        CheckFailed: A tensor does not have the shape that the configuration asks for.
    """
    tick = tick or _no_tick
    prompt, mask = _padded(scenario.prompt, schedule.padding)  # (B, N) each
    batch = prompt.shape[0]
    cache = session.empty_cache(batch)
    parts = schedule.parts(prompt.shape[1])
    for part in parts:
        logits = session.prefill(prompt[:, part], cache, mask[:, part])
        tick()
    for token in prompt[:, parts[-1].stop :].T:
        logits = session.decode(token[:, None], cache)
        tick()
    steps = [logits]
    for token in scenario.forced:
        steps.append(session.decode(np.full((batch, 1), token), cache))
        tick()
    return _trace(session, cache, steps, scenario)


def generate(session: Session[Any], prompt: Array, steps: int, tick: Tick | None = None) -> Array:
    """Continue a prompt greedily; return the tokens, int64 ``(steps,)``. The last one is not fed back."""
    tick = tick or _no_tick
    cache = session.empty_cache()
    logits = session.prefill(prompt[None], cache)
    tick()
    tokens = [int(logits[0, -1].argmax())]
    for _ in range(steps - 1):
        logits = session.decode(np.array([tokens[-1:]]), cache)
        tick()
        tokens.append(int(logits[0, -1].argmax()))
    return np.array(tokens, dtype=np.int64)


def free_run(session: Session[Any], scenario: Scenario, tick: Tick | None = None) -> Rows:
    """Let a session generate freely; return its logits up to the first token that leaves the forced ones.

    Behind that token the contexts differ and nothing can be compared. The last row is the one that chose it, or, if the
    session never leaves, the one after the last forced token.

    Args:
        session: Any runtime.
        scenario: One whose forced tokens are the reference's own choice.
        tick: Called after every call of the session.
    """
    tick = tick or _no_tick
    cache = session.empty_cache()
    rows = [session.prefill(scenario.prompt[None], cache)]
    tick()
    for token in scenario.forced:
        chosen = rows[-1][0, -1].argmax()
        if chosen != token:
            break
        rows.append(session.decode(np.array([[chosen]]), cache))
        tick()
    return Rows(np.concatenate(rows, axis=1), start=len(scenario.prompt) - 1)


def _padded(prompt: Array, padding: int) -> tuple[Array, Array]:
    """Return tokens and mask, ``(1, N)``; with padding two rows, ``(2, N + padding)``, padded on the left and right."""
    if not padding:
        return prompt[None], np.ones((1, len(prompt)), dtype=bool)
    filler = np.full(padding, prompt[0])  # a token like any other: only the mask says that it is padding
    ids = np.stack([np.concatenate([filler, prompt]), np.concatenate([prompt, filler])])
    mask = np.ones(ids.shape, dtype=bool)
    mask[0, :padding] = mask[1, len(prompt) :] = False
    return ids, mask


def _trace(session: Session[Any], cache: Cache[Any], steps: list[Array], scenario: Scenario) -> Trace:
    config, tensors = session.config, {}
    shape = (cache.batch, config.num_key_value_heads, cache.length, config.head_dim)
    layers = session.layer_arrays(cache)
    if len(layers) != config.num_hidden_layers:
        raise CheckFailed(f"The cache holds {len(layers)} layers, the model has {config.num_hidden_layers}.")
    for layer, pair in enumerate(layers):
        for kind, array in enumerate(pair):
            name = TensorId(layer, kind)
            if array.shape != shape:
                raise CheckFailed(f"{name} has shape {array.shape}, the model's configuration asks for {shape}.")
            tensors[name] = Rows(_token_rows(array, cache.mask))
    logits = np.concatenate(steps, axis=1)  # (B, S + 1, vocab)
    wanted = (cache.batch, len(scenario.forced) + 1, config.vocab_size)
    if logits.shape != wanted:
        raise CheckFailed(f"The logits have shape {logits.shape}, the model's configuration asks for {wanted}.")
    tensors[TensorId(len(layers), KINDS.index("logits"))] = Rows(logits, start=len(scenario.prompt) - 1)
    return Trace(tensors)


def _token_rows(array: Array, mask: Array) -> Array:
    """Drop padding: ``(B, KV, T, D)`` to ``(B, tokens, KV·D)``. Each row of the mask ``(B, T)`` has as many tokens."""
    rows = array.transpose(0, 2, 1, 3).reshape(*mask.shape, -1)  # (B, T, KV·D)
    return rows[mask].reshape(mask.shape[0], -1, rows.shape[-1])


def _no_tick() -> None:
    pass
