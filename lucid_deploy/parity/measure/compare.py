"""Run a session through a scenario and record what it computed, position by position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lucid_deploy.cache.layout import CacheTensor
from lucid_deploy.cache.storage import decoded_layout
from lucid_deploy.errors import CheckFailed
from lucid_deploy.model.scenarios import ONE_SHOT, Scenario, Schedule
from lucid_deploy.runtimes.session import Array, Cache, Session

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
    """Feed a scenario, the forced tokens as decode steps, and record everything; :func:`record_together` with one."""
    return record_together(session, [scenario], schedule, tick)[0]


def record_together(
    session: Session[Any], scenarios: Sequence[Scenario], schedule: Schedule = ONE_SHOT, tick: Tick | None = None
) -> list[Trace]:
    """Feed scenarios as rows of one batch, the forced tokens as decode steps, and record everything.

    Args:
        session: Any runtime.
        scenarios: The tokens; prompts of one length, and as many forced tokens.
        schedule: How the prompts are fed.
        tick: Called after every call of the session.

    Raises:
        CheckFailed: A tensor does not have the shape that the configuration asks for.
    """
    tick = tick or _no_tick
    pairs = [_padded(scenario.prompt, schedule.padding) for scenario in scenarios]
    prompt, mask = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))  # (B, N) each
    cache = session.empty_cache(len(prompt))
    parts = schedule.parts(prompt.shape[1])
    for part in parts:
        logits = session.prefill(prompt[:, part], cache, mask[:, part])
        tick()
    for token in prompt[:, parts[-1].stop :].T:
        logits = session.decode(token[:, None], cache)
        tick()
    steps = [logits]
    for tokens in np.stack([scenario.forced for scenario in scenarios], axis=1):
        steps.append(session.decode(np.repeat(tokens, len(prompt) // len(tokens))[:, None], cache))
        tick()
    return _traces(session, cache, np.concatenate(steps, axis=1), scenarios)


def record_at_once(session: Session[Any], scenario: Scenario) -> Trace:
    """Feed all tokens of a scenario in one prefill, the forced ones too, and record everything.

    In float64 that is what any way of feeding gives, in one call: a large model's weights are read once.
    """
    cache = session.empty_cache()
    ids = np.concatenate([scenario.prompt, scenario.forced])
    logits = session.prefill_all(ids[None], cache)[:, len(scenario.prompt) - 1 :]
    return _traces(session, cache, logits, [scenario])[0]


def follow(session: Session[Any], prompt: Array, draft: Callable[[Array, int], Array], steps: int) -> Array:
    """Return what a session generates greedily, asking it for one token at a time only where a draft is wrong.

    Args:
        session: The model whose choice it is.
        prompt: Int64 ``(P,)``.
        draft: Returns a guess at how tokens go on, ``(tokens, n)`` to ``(n,)``; any will do, a good one is fast.
        steps: Tokens to generate.

    Returns:
        Int64 ``(steps,)``.
    """
    cache, chosen, fed = session.empty_cache(), np.zeros(0, dtype=np.int64), prompt
    while True:
        guess = draft(np.concatenate([prompt, chosen]), steps - len(chosen))
        new = session.prefill_all(np.concatenate([fed, guess[:-1]])[None], cache)[0, len(fed) - 1 :]  # (count, vocab)
        wanted = new.argmax(axis=-1)
        right = int(np.argmin(np.append(wanted == guess, False)))  # the first wrong one, or all
        chosen = np.concatenate([chosen, wanted[: right + 1]])
        if len(chosen) == steps:
            return chosen
        fed = chosen[-1:]
        session.truncate(cache, len(prompt) + len(chosen) - 1)


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


def _traces(session: Session[Any], cache: Cache[Any], logits: Array, scenarios: Sequence[Scenario]) -> list[Trace]:
    """Split what a batch computed, logits ``(B, S + 1, vocab)`` included, into the traces of its scenarios."""
    config = session.config
    layers = session.layer_arrays(cache)
    if len(layers) != config.num_hidden_layers:
        raise CheckFailed(f"The cache holds {len(layers)} layers, the model has {config.num_hidden_layers}.")
    whole: dict[TensorId, Rows] = {}
    for index, (layout, arrays) in enumerate(zip(session.layout, layers, strict=True)):
        for kind, (tensor, array) in enumerate(zip(decoded_layout(layout), arrays, strict=True)):
            name, shape = TensorId(index, kind), tensor.batch_shape(cache.batch, cache.length)
            if array.shape != shape:
                raise CheckFailed(f"{name} has shape {array.shape}, the model's configuration asks for {shape}.")
            whole[name] = _token_rows(tensor, array, cache.mask)
    wanted = (cache.batch, len(scenarios[0].forced) + 1, config.vocab_size)
    if logits.shape != wanted:
        raise CheckFailed(f"The logits have shape {logits.shape}, the model's configuration asks for {wanted}.")
    last, each = TensorId(len(layers), KINDS.index("logits")), cache.batch // len(scenarios)
    traces = []
    for index, scenario in enumerate(scenarios):
        own = slice(index * each, (index + 1) * each)
        tensors = {name: Rows(rows.values[own], start=rows.start) for name, rows in whole.items()}
        tensors[last] = Rows(logits[own], start=len(scenario.prompt) - 1)
        traces.append(Trace(tensors))
    return traces


def _token_rows(tensor: CacheTensor, array: Array, mask: Array) -> Rows:
    """Drop padding: ``(B, KV, T, D)`` to ``(B, tokens, KV·D)``. Each row of the mask ``(B, T)`` has as many tokens.

    Of a ring these are the last tokens, as many as it holds.
    """
    if not tensor.has_tokens:
        raise CheckFailed(f"{tensor.name} is a state, and states are not compared yet.")
    tokens, rows = int(mask[0].sum()), array.transpose(0, 2, 1, 3)  # (B, T, KV, D)
    if tensor.sort == "ring":
        held = tensor.held(tokens)
        return Rows(rows[:, rows.shape[1] - held :].reshape(len(rows), held, -1), start=tokens - held)
    return Rows(rows.reshape(*mask.shape, -1)[mask].reshape(len(rows), tokens, -1))


def _no_tick() -> None:
    pass
