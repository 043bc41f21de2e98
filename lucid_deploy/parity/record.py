"""Run a session over a scenario and record what it computes at every position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from lucid_deploy.cache.layout import CacheTensor, row_content
from lucid_deploy.cache.storage import decoded_layout
from lucid_deploy.errors import CheckFailed
from lucid_deploy.model.description import LayerDescription
from lucid_deploy.parity.progress import Tick
from lucid_deploy.parity.scenarios import ONE_SHOT, REJECTED, Scenario, Schedule, equal_lengths
from lucid_deploy.runtimes.cache_rows import take_back
from lucid_deploy.runtimes.session import Array, Cache, Session

KINDS = ("K", "Y", "logits")  # in the order of computation; failures are reported in this order too
ROWS = {"key": 0, "value": 1}  # index into KINDS, by name of a cached tensor that has a row for each token


class TensorId(NamedTuple):
    """Identifies a tensor. Ids sort in the order of computation: by layer, K before Y, logits last."""

    layer: int  # −1 for the embedding, the number of layers for the logits
    kind: int  # index into KINDS; for other cached tensors len(KINDS) + their index in the layer's layout
    other: str = ""  # the tensor's word, if it is not KINDS[kind]

    @staticmethod
    def of(index: int, place: int, tensor: CacheTensor, layer: LayerDescription) -> TensorId:
        """Return the id of the tensor at ``place`` in the layout of layer ``index``; without a solve, V replaces Y."""
        if tensor.sort == "rows" and tensor.name in ROWS:
            return TensorId(index, ROWS[tensor.name], "V" if tensor.name == "value" and not layer.solves else "")
        return TensorId(index, len(KINDS) + place, tensor.name)

    @property
    def word(self) -> str:
        """``K``, ``Y``, ``V``, ``logits``, ``embedding``, a layer's ``output``, or another cached tensor's name."""
        return self.other or KINDS[self.kind]

    @property
    def accumulated(self) -> bool:
        """Whether each row is a sum over earlier rows, so that errors are relative to the largest row so far."""
        return self.word == "Y"

    @property
    def is_logits(self) -> bool:
        """Whether these are the logits."""
        return self.word == "logits"

    def __str__(self) -> str:
        """Format as ``layer 3 Y``, ``embedding`` or ``logits``."""
        return self.word if self.is_logits or self.layer < 0 else f"layer {self.layer} {self.word}"


# States are compared after each of the last STATES tokens. A gate derived from a single state depends on luck (a
# correct candidate had twice the error that such a gate allowed); more states would take as much memory as a model.
STATES = 4
States = dict[tuple[int, int], Array]  # the state (B, …), by layer and index in the layer's layout without scales


@dataclass(frozen=True)
class TensorRows:
    """A tensor with a row for each position; for a state, its value after each of the last ``STATES`` tokens."""

    values: Array  # (B, T, F); F is key/value heads times head width, the vocabulary, or a state's size
    start: int = 0  # position of the first row in the sequence, padding not counted
    is_state: bool = False

    def from_position(self, position: int) -> TensorRows:
        """Return the rows from a position on, which must not be before ``start``."""
        assert position >= self.start
        return replace(self, values=self.values[:, position - self.start :], start=position)


@dataclass(frozen=True)
class Trace:
    """What a session computed: the cached tensors of every layer, and the logits from the last prompt token on."""

    tensors: dict[TensorId, TensorRows]  # in the order of computation

    @property
    def logits(self) -> TensorRows:
        """The logits, which come last."""
        return self.tensors[max(self.tensors)]


def record_together(
    session: Session[Any], scenarios: Sequence[Scenario], schedule: Schedule = ONE_SHOT, tick: Tick | None = None
) -> dict[str, Trace]:
    """Feed scenarios of equal lengths as one batch, calling ``tick`` after each call; return their traces by name."""
    scenarios = [schedule.fed(scenario) for scenario in scenarios]
    fed = _feed(session, scenarios, schedule, tick or no_tick)
    return _traces(session, fed.cache, fed.logits, scenarios, fed.states)


def record_all(
    session: Session[Any], scenarios: Sequence[Scenario], schedule: Schedule = ONE_SHOT, tick: Tick | None = None
) -> dict[str, Trace]:
    """Feed scenarios, those of equal lengths as one batch; return their traces by name."""
    found: dict[str, Trace] = {}
    for group in equal_lengths(scenarios):
        found |= record_together(session, group, schedule, tick)
    return found


def record_greedy(
    session: Session[Any], scenarios: Sequence[Scenario], tick: Tick | None = None
) -> tuple[list[Scenario], dict[str, Trace]]:
    """Feed scenarios one-shot; return them, greedy ones with the tokens that were generated, and traces by name."""
    chosen: dict[str, Scenario] = {}
    traces: dict[str, Trace] = {}
    for group in equal_lengths(scenarios):
        fed = _feed(session, group, ONE_SHOT, tick or no_tick, choose=True)
        own = [replace(scenario, forced=tokens) for scenario, tokens in zip(group, fed.tokens, strict=True)]
        chosen |= {scenario.name: scenario for scenario in own}
        traces |= _traces(session, fed.cache, fed.logits, own, fed.states)
    return [chosen[scenario.name] for scenario in scenarios], traces


def record_at_once(session: Session[Any], scenarios: Sequence[Scenario], tick: Tick | None = None) -> dict[str, Trace]:
    """Prefill all tokens of scenarios, forced ones included, in few calls; return their traces by name.

    For the float64 reference: there all schedules compute the same, and every call casts the weights again. The first
    call runs the tokens whose logits are not compared, so that the head is applied to only one of them. If layers keep
    states, each of the last tokens has a call of its own, since the state after it is compared too.
    """
    tick = tick or no_tick
    found: dict[str, Trace] = {}
    for group in equal_lengths(scenarios):
        cache = session.empty_cache(len(group))
        ids = np.stack([scenario.ids for scenario in group])  # (B, T)
        first = len(group[0].prompt) - 1
        if first:
            session.prefill(ids[:, :first], cache)
        tick()
        singly = _snapshots(session, len(group[0].forced)) - 1
        parts = [ids[:, first : ids.shape[1] - singly], *(ids[:, column, None] for column in range(-singly, 0))]
        logits, states = [], []
        for part in parts:
            logits.append(session.prefill_all(part, cache))
            states.append(_states(session, cache))
        tick()
        found |= _traces(session, cache, np.concatenate(logits, axis=1), group, states)
    return found


@dataclass(frozen=True)
class _Fed:
    """The result of feeding a batch with one row for each scenario, or two in the padded schedule."""

    cache: Cache[Any]
    logits: Array  # (B, S + 1, vocab)
    tokens: Array  # the decoded tokens, (scenarios, S)
    states: list[States]  # after each of the last tokens


def _snapshots(session: Session[Any], forced: int) -> int:
    """Return after how many of the last tokens states are recorded; 1 if no layer has states."""
    return min(STATES, forced + 1) if has_states(session) else 1


def has_states(session: Session[Any]) -> bool:
    """Whether a layer keeps a state."""
    return any(not tensor.has_tokens for layer in session.layout for tensor in layer)


def _states(session: Session[Any], cache: Cache[Any]) -> States:
    """Return the states of a cache by layer and index in its layout; empty if no layer has states."""
    places = [
        (index, place)
        for index, layout in enumerate(session.layout)
        for place, tensor in enumerate(decoded_layout(layout))
        if not tensor.has_tokens
    ]
    layers = session.layer_arrays(cache) if places else []
    # Copy them: a session may change its states in place.
    return {(index, place): layers[index][place].copy() for index, place in places}


def _feed(
    session: Session[Any], scenarios: Sequence[Scenario], schedule: Schedule, tick: Tick, choose: bool = False
) -> _Fed:
    """Feed scenarios as one batch; with ``choose``, decode the tokens of largest logit in greedy scenarios."""
    prompts = np.stack([scenario.prompt for scenario in scenarios])  # (B, P)
    each = 2 if schedule.padding else 1
    cache = session.empty_cache(each * len(scenarios))
    for part, (tokens, decoded) in enumerate(schedule.parts(prompts.shape[1])):
        if decoded:
            for token in prompts[:, tokens].T:
                logits = session.decode(token[:, None], cache)
                tick()
        else:
            ids, mask = prompts[:, tokens], None
            if schedule.padding:
                ids, mask = _padded(ids, schedule.padding, part)
            logits = session.prefill(ids, cache, mask)
            tick()
    forced = np.stack([scenario.forced for scenario in scenarios])  # (B, S)
    free = np.array([choose and scenario.greedy for scenario in scenarios])
    steps, fed, states = [logits], [], []
    kept = _snapshots(session, forced.shape[1])
    if kept > forced.shape[1]:
        states.append(_states(session, cache))
    for number, columns in enumerate(schedule.groups(forced.shape[1])):
        if schedule.drafts:
            steps.append(_verify(session, forced[:, columns], cache, REJECTED if number == 0 else 0))
        else:
            fed.append(np.where(free, steps[-1][::each, -1].argmax(axis=-1), forced[:, columns.start]))
            steps.append(session.decode(np.repeat(fed[-1], each)[:, None], cache))
        if columns.stop > forced.shape[1] - kept:
            states.append(_states(session, cache))
        tick()
    chosen = np.stack(fed, axis=1) if fed else forced
    return _Fed(cache, np.concatenate(steps, axis=1), chosen, states)


def _verify(session: Session[Any], drafts: Array, cache: Cache[Any], wrong: int) -> Array:
    """Verify drafts ``(B, n)`` and then ``wrong`` wrong ones, which are removed again; return the drafts' logits."""
    rows, right = drafts.shape
    others = (drafts[:, -1:] + np.arange(1, wrong + 1)) % session.config.vocab_size
    logits = session.decode_several(np.concatenate([drafts, others], axis=1), cache)
    if wrong:
        take_back(session, cache, right + wrong, np.full(rows, right), bool(np.isfinite(logits).all()))
    return logits[:, :right]


def _padded(tokens: Array, padding: int, call: int) -> tuple[Array, Array]:
    """Return two rows for each row of tokens ``(B, n)``, one padded left and one padded right, and their mask.

    In the second call (``call`` 1) the sides are swapped, so that one row of each pair has padding at both ends and
    the other in the middle. Each call adds half of the padding; the first adds the odd column.
    """
    columns = (padding + 1) // 2 if call == 0 else padding // 2
    filler = np.repeat(tokens[:, :1], columns, axis=1)  # real tokens: only the mask makes them padding
    left, right = np.concatenate([filler, tokens], axis=1), np.concatenate([tokens, filler], axis=1)
    left_mask = np.arange(left.shape[1]) >= columns
    pair, masks = [left, right], [left_mask, left_mask[::-1]]
    if call:
        pair, masks = pair[::-1], masks[::-1]
    ids = np.stack(pair, axis=1).reshape(-1, left.shape[1])  # (2·B, n + columns)
    return ids, np.tile(np.stack(masks), (len(tokens), 1))


def _traces(
    session: Session[Any],
    cache: Cache[Any],
    logits: Array,
    scenarios: Sequence[Scenario],
    states: Sequence[States],
) -> dict[str, Trace]:
    """Split a batch's cache, logits ``(B, S + 1, vocab)`` and last states into one trace per scenario, by name."""
    config = session.config
    layers = session.layer_arrays(cache)
    if len(layers) != config.num_hidden_layers:
        raise CheckFailed(f"The cache has {len(layers)} layers, the model has {config.num_hidden_layers}.")
    held, fed = cache.mask.sum(axis=1), scenarios[0].length
    if (held != fed).any():
        raise CheckFailed(f"The cache holds {held[held != fed][0]} tokens of a row, {fed} were fed.")
    whole: dict[TensorId, TensorRows] = {}
    for index, (layer, arrays) in enumerate(zip(session.layers, layers, strict=True)):
        for place, (tensor, array) in enumerate(zip(decoded_layout(layer.cache), arrays, strict=True)):
            name, shape = TensorId.of(index, place, tensor, layer), tensor.batch_shape(cache.batch, cache.length)
            if array.shape != shape:
                raise CheckFailed(f"{name} has shape {array.shape}; with the model's configuration it must be {shape}.")
            if (index, place) in states[-1]:
                last_ones = np.stack([each[index, place].reshape(cache.batch, -1) for each in states], axis=1)
                whole[name] = TensorRows(last_ones, int(cache.mask[0].sum()) - len(states), is_state=True)
            else:
                whole[name] = _token_rows(tensor, array, cache.mask)
    last, each = TensorId(len(layers), KINDS.index("logits")), cache.batch // len(scenarios)
    traces = {}
    for index, scenario in enumerate(scenarios):
        own = slice(index * each, (index + 1) * each)
        tensors = {name: replace(rows, values=rows.values[own]) for name, rows in whole.items()}
        tensors[last] = TensorRows(logits[own], start=len(scenario.prompt) - 1)
        traces[scenario.name] = Trace(tensors)
    return traces


def _token_rows(tensor: CacheTensor, array: Array, mask: Array) -> TensorRows:
    """Turn ``(B, KV, T, D)`` into ``(B, tokens, KV·D)`` without the padding, where ``mask`` ``(B, T)`` is False.

    All rows of the mask have equally many tokens. A ring has only the last tokens.
    """
    tokens = int(mask[0].sum())
    held = np.stack([row_content(tensor, array, mask, row) for row in range(len(mask))])  # (B, KV, held, D)
    rows = held.transpose(0, 2, 1, 3).reshape(len(mask), held.shape[2], -1)
    return TensorRows(rows, tokens - held.shape[2])


def no_tick() -> None:
    """Do nothing; the tick of calls that are not counted."""
