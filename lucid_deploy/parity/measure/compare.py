"""Run a session through a scenario and record what it computed, position by position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from lucid_deploy.cache.layout import CacheTensor, row_content
from lucid_deploy.cache.storage import decoded_layout
from lucid_deploy.errors import CheckFailed
from lucid_deploy.model.scenarios import ONE_SHOT, Scenario, Schedule
from lucid_deploy.runtimes.session import Array, Cache, Session

Tick = Callable[[], None]

KINDS = ("K", "Y", "logits")  # the order in which a layer computes them, and failures are named
ROWS = {"key": "K", "value": "Y"}  # what cached rows of keys and values are called here; others keep their names


class TensorId(NamedTuple):
    """Names one tensor. Sorts in the order of computation: layer, K before Y, logits last.

    Attributes:
        layer: Index of the layer; for the logits, the number of layers.
        kind: Index into ``KINDS``; beyond it, the place of another cached tensor.
        other: Name of another cached tensor than K and Y, as the layer's layout has it.
    """

    layer: int
    kind: int
    other: str = ""

    @staticmethod
    def of(layer: int, place: int, tensor: CacheTensor) -> TensorId:
        """Name the cached tensor at a place of a layer's layout."""
        if tensor.sort == "rows" and tensor.name in ROWS:
            return TensorId(layer, KINDS.index(ROWS[tensor.name]))
        return TensorId(layer, len(KINDS) + place, tensor.name)

    @property
    def word(self) -> str:
        """``K``, ``Y``, ``logits``, or the name of another cached tensor."""
        return self.other or KINDS[self.kind]

    @property
    def accumulated(self) -> bool:
        """Whether rows are sums over those before them, which sets the scale of their errors."""
        return self.word == "Y"

    @property
    def is_keys(self) -> bool:
        """Whether these are keys."""
        return self.word == "K"

    @property
    def is_logits(self) -> bool:
        """Whether these are the logits."""
        return self.word == "logits"

    def __str__(self) -> str:
        """``layer 3 Y`` or ``logits``."""
        return "logits" if self.is_logits else f"layer {self.layer} {self.word}"


# After so many of the last tokens, from the prompt's last on, states are compared: the error of one draw would make a
# gate that is too narrow for a correct candidate (seen: twice the gate), and more would take the memory of a model.
STATES = 4
States = dict[tuple[int, int], Array]  # by layer, and place in its layout without scales


@dataclass(frozen=True)
class TensorRows:
    """One tensor, a row for each position; of a state, what it is after each of the last ``STATES`` tokens.

    Attributes:
        values: ``(B, T, F)``; F is key/value heads times head width, or the vocabulary.
        start: Position in the sequence (padding not counted) of the first row.
        is_state: Whether it is a state.
    """

    values: Array
    start: int = 0
    is_state: bool = False

    def from_position(self, position: int) -> TensorRows:
        """Return the rows from a position of the sequence on, which must be among them."""
        assert position >= self.start
        return replace(self, values=self.values[:, position - self.start :], start=position)


@dataclass(frozen=True)
class Trace:
    """What a session computed: K and Y of every layer at all positions, logits from the last prefilled token on.

    Attributes:
        tensors: In the order of computation.
    """

    tensors: dict[TensorId, TensorRows]


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
        schedule: How the prompts are fed, and how many of the forced tokens with them: logits are those behind.
        tick: Called after every call of the session.

    Raises:
        CheckFailed: A tensor does not have the shape that the configuration asks for.
    """
    scenarios = [schedule.fed(scenario) for scenario in scenarios]
    fed = _feed(session, scenarios, schedule, tick or no_tick)
    return _traces(session, fed.cache, fed.logits, scenarios, fed.states)


def record_drafting(
    session: Session[Any], scenarios: Sequence[Scenario], tick: Tick | None = None
) -> list[tuple[Scenario, Trace]]:
    """As :func:`record_together` one-shot, but greedy scenarios go on with the tokens that the session prefers.

    Returns:
        The scenarios, the greedy ones with those tokens in place of their forced ones, and what was recorded.
    """
    fed = _feed(session, scenarios, ONE_SHOT, tick or no_tick, choose=True)
    drafted = [replace(scenario, forced=tokens) for scenario, tokens in zip(scenarios, fed.tokens, strict=True)]
    return list(zip(drafted, _traces(session, fed.cache, fed.logits, drafted, fed.states), strict=True))


def record_at_once(session: Session[Any], scenario: Scenario, tick: Tick | None = None) -> Trace:
    """:func:`record_at_once_together` with one."""
    return record_at_once_together(session, [scenario], tick)[0]


def record_at_once_together(
    session: Session[Any], scenarios: Sequence[Scenario], tick: Tick | None = None
) -> list[Trace]:
    """Feed all tokens of scenarios of equal lengths in two prefills, the forced ones too, and record everything.

    In float64 that is what any way of feeding gives, in two calls: a large model's weights are read, and cast, twice.
    The second call has the tokens whose logits are compared; the head is not applied to the others. Where layers keep
    states, the last tokens come one by one, since their states are compared too.
    """
    tick = tick or no_tick
    cache = session.empty_cache(len(scenarios))
    ids = np.stack([np.concatenate([scenario.prompt, scenario.forced]) for scenario in scenarios])  # (B, T)
    first = len(scenarios[0].prompt) - 1
    if first:
        session.prefill(ids[:, :first], cache)
    tick()
    singly = _snapshots(session, len(scenarios[0].forced)) - 1
    parts = [ids[:, first : ids.shape[1] - singly], *(ids[:, column, None] for column in range(-singly, 0))]
    logits, states = [], []
    for part in parts:
        logits.append(session.prefill_all(part, cache))
        states.append(_states(session, cache))
    tick()
    return _traces(session, cache, np.concatenate(logits, axis=1), scenarios, states)


@dataclass(frozen=True)
class _Fed:
    """What came of feeding: cache, logits ``(B, S + 1, vocab)``, tokens fed, a row for each scenario, last states."""

    cache: Cache[Any]
    logits: Array
    tokens: Array
    states: list[States]


def _snapshots(session: Session[Any], forced: int) -> int:
    """Return after how many of the last tokens states are compared; 1 where no layer has any."""
    return min(STATES, forced + 1) if has_states(session) else 1


def has_states(session: Session[Any]) -> bool:
    """Whether a layer keeps a state."""
    return any(not tensor.has_tokens for layer in session.layout for tensor in layer)


def _states(session: Session[Any], cache: Cache[Any]) -> States:
    """Return the states of a cache by layer and place; nothing where no layer has any."""
    places = [
        (index, place)
        for index, layout in enumerate(session.layout)
        for place, tensor in enumerate(decoded_layout(layout))
        if not tensor.has_tokens
    ]
    layers = session.layer_arrays(cache) if places else []
    # A copy: a session may change its states in place.
    return {(index, place): layers[index][place].copy() for index, place in places}


def _feed(
    session: Session[Any], scenarios: Sequence[Scenario], schedule: Schedule, tick: Tick, choose: bool = False
) -> _Fed:
    """Feed scenarios as rows of one batch.

    With ``choose``, a greedy scenario's next token is the one with the largest logit.
    """
    pairs = [_padded(scenario.prompt, schedule.padding) for scenario in scenarios]
    prompt, mask = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))  # (B, N) each
    cache, each = session.empty_cache(len(prompt)), len(prompt) // len(scenarios)
    for tokens, decoded in schedule.parts(prompt.shape[1]):
        if decoded:
            for token in prompt[:, tokens].T:
                logits = session.decode(token[:, None], cache)
                tick()
        else:
            logits = session.prefill(prompt[:, tokens], cache, mask[:, tokens])
            tick()
    free = np.array([choose and scenario.greedy for scenario in scenarios])
    steps, fed, states = [logits], [], []
    kept = _snapshots(session, len(scenarios[0].forced))
    if kept > len(scenarios[0].forced):
        states.append(_states(session, cache))
    for place, forced in enumerate(np.stack([scenario.forced for scenario in scenarios], axis=1), start=1):
        fed.append(np.where(free, steps[-1][::each, -1].argmax(axis=-1), forced))
        steps.append(session.decode(np.repeat(fed[-1], each)[:, None], cache))
        if place > len(scenarios[0].forced) - kept:
            states.append(_states(session, cache))
        tick()
    return _Fed(cache, np.concatenate(steps, axis=1), np.stack(fed, axis=1), states)


def _padded(prompt: Array, padding: int) -> tuple[Array, Array]:
    """Return tokens and mask, ``(1, N)``; with padding two rows, ``(2, N + padding)``, padded on the left and right."""
    if not padding:
        return prompt[None], np.ones((1, len(prompt)), dtype=bool)
    filler = np.full(padding, prompt[0])  # a token like any other: only the mask says that it is padding
    ids = np.stack([np.concatenate([filler, prompt]), np.concatenate([prompt, filler])])
    mask = np.ones(ids.shape, dtype=bool)
    mask[0, :padding] = mask[1, len(prompt) :] = False
    return ids, mask


def _traces(
    session: Session[Any],
    cache: Cache[Any],
    logits: Array,
    scenarios: Sequence[Scenario],
    states: Sequence[States],
) -> list[Trace]:
    """Split what a batch computed into the traces of its scenarios: logits ``(B, S + 1, vocab)``, the last states."""
    config = session.config
    layers = session.layer_arrays(cache)
    if len(layers) != config.num_hidden_layers:
        raise CheckFailed(f"The cache holds {len(layers)} layers, the model has {config.num_hidden_layers}.")
    whole: dict[TensorId, TensorRows] = {}
    for index, (layout, arrays) in enumerate(zip(session.layout, layers, strict=True)):
        for place, (tensor, array) in enumerate(zip(decoded_layout(layout), arrays, strict=True)):
            name, shape = TensorId.of(index, place, tensor), tensor.batch_shape(cache.batch, cache.length)
            if array.shape != shape:
                raise CheckFailed(f"{name} has shape {array.shape}, the model's configuration asks for {shape}.")
            if (index, place) in states[-1]:
                last_ones = np.stack([each[index, place].reshape(cache.batch, -1) for each in states], axis=1)
                whole[name] = TensorRows(last_ones, int(cache.mask[0].sum()) - len(states), is_state=True)
            else:
                whole[name] = _token_rows(tensor, array, cache.mask)
    last, each = TensorId(len(layers), KINDS.index("logits")), cache.batch // len(scenarios)
    traces = []
    for index, scenario in enumerate(scenarios):
        own = slice(index * each, (index + 1) * each)
        tensors = {name: replace(rows, values=rows.values[own]) for name, rows in whole.items()}
        tensors[last] = TensorRows(logits[own], start=len(scenario.prompt) - 1)
        traces.append(Trace(tensors))
    return traces


def _token_rows(tensor: CacheTensor, array: Array, mask: Array) -> TensorRows:
    """Drop padding: ``(B, KV, T, D)`` to ``(B, tokens, KV·D)``. Each row of the mask ``(B, T)`` has as many tokens.

    A ring has rows of the last tokens.
    """
    tokens = int(mask[0].sum())
    held = np.stack([row_content(tensor, array, mask, row) for row in range(len(mask))])  # (B, KV, held, D)
    rows = held.transpose(0, 2, 1, 3).reshape(len(mask), held.shape[2], -1)
    return TensorRows(rows, tokens - held.shape[2])


def no_tick() -> None:
    """Count nothing."""
