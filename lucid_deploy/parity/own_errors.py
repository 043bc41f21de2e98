"""Measure each layer's own error: its error when it runs on the float64 reference's inputs.

Every layer gets the reference's residual stream and the reference's K and Y of earlier tokens, so errors of earlier
layers do not reach it. The gate is derived as all gates are: ``FACTOR`` times the largest own error at any position of
the PyTorch model in the same precision, fed in the same ways, but at least ``FLOOR_UNITS`` units in the last place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lucid_deploy.cache.layout import CacheTensor
from lucid_deploy.cache.storage import decoded_layout
from lucid_deploy.model.description import LayerDescription
from lucid_deploy.parity.gate import FACTOR, FLOOR_UNITS, UNIT, Gate
from lucid_deploy.parity.progress import Tick
from lucid_deploy.parity.record import KINDS, TensorId, Trace
from lucid_deploy.parity.scenarios import PADDING, Scenario
from lucid_deploy.runtimes.layers import Layers, LayerStates, NewTokens, Past
from lucid_deploy.runtimes.session import Array, empty_arrays

PREFILL, CONTINUED, PADDED, DECODE = "one prefill", "prefill after a past", "padded prefill", "decode"


@dataclass(frozen=True)
class ReferenceStates:
    """The results of the reference's layers in one scenario."""

    scenario: Scenario
    states: LayerStates  # of one prefill of all tokens, in float64
    logits: Array  # at the last prompt token and every token after it, (1, S + 1, vocab)
    layers: tuple[LayerDescription, ...]
    pasts: dict[int, Past] = field(default_factory=dict)  # caches by number of tokens; empty if layers cache only rows

    @property
    def ids(self) -> Array:
        """Token ids of the whole scenario, ``(1, T)``."""
        return self.scenario.ids[None]

    def past(self, length: int) -> Past:
        """Return each layer's cache after the first ``length`` tokens, such as K and Y ``(1, KV, length, D)``."""
        if length == 0:
            return empty_arrays(self.layers, 1)
        if self.pasts:
            return self.pasts[length]
        return [tuple(rows[:, :, :length] for rows in layer.values()) for layer in self.states.cached]

    def residuals(self, rows: slice) -> list[Array]:
        """Return the inputs of every layer and then of the final norm at these tokens, each ``(1, n, hidden)``."""
        return [x[:, rows] for x in self.states.residuals]


@dataclass(frozen=True)
class WorstOwnError:
    """A part's first own error beyond its gate in one scenario, or its largest one if none is beyond the gate."""

    scenario: str
    part: TensorId
    feeding: str  # how the tokens were fed where this error arose
    position: int  # position in the sequence
    error: float  # relative L2 error there
    gate: Gate
    failed: bool

    @property
    def judged(self) -> bool:
        """Whether this part failed, or could have failed since its gate is below the error of zeros."""
        return self.failed or self.gate.judges


OwnErrors = dict[TensorId, dict[str, tuple[Array, Array]]]  # by part and feeding: positions (n,) and errors (n,)


def look_inside(reference: Layers, scenario: Scenario, trace: Trace) -> ReferenceStates:
    """Run the reference over a scenario; return the results of its layers, and the logits of a recorded trace."""
    ids = scenario.ids[None]
    states = reference.run(NewTokens.after(ids), reference.empty_past())
    only_rows = all(tensor.sort == "rows" for layer in reference.layers for tensor in layer.cache)
    pasts = {} if only_rows else _pasts(reference, ids, len(scenario.prompt))
    return ReferenceStates(scenario, states, trace.logits.values, reference.layers, pasts)


def _pasts(reference: Layers, ids: Array, prompt: int) -> dict[int, Past]:
    """Run a sequence ``(1, T)`` in pieces; return the cache at every length but 0 from which :func:`rerun` starts."""
    pasts: dict[int, Past] = {}
    past, start = reference.empty_past(), 0
    layouts = [decoded_layout(layer.cache) for layer in reference.layers]
    for stop in sorted({prompt // 2, *range(prompt, ids.shape[1])} - {0}):
        states = reference.run(NewTokens.after(ids[:, start:stop], start), past)
        past = [
            tuple(continued(tensor, before, new[tensor.name]) for tensor, before in zip(layout, held, strict=True))
            for layout, held, new in zip(layouts, past, states.cached, strict=True)
        ]
        pasts[stop] = past
        start = stop
    return pasts


def continued(tensor: CacheTensor, before: Array, new: Array) -> Array:
    """Append new rows to cached ones; rings and states are replaced as a whole."""
    return np.concatenate([before, new], axis=2) if tensor.sort == "rows" else new


def calls(scenario: Scenario) -> int:
    """Return the number of calls that :func:`rerun` makes."""
    return 2 + (len(scenario.prompt) > 1) + len(scenario.forced)


def rerun(layers: Layers, inside: ReferenceStates, tick: Tick) -> Iterator[tuple[str, int, Array, LayerStates]]:
    """Run every layer on the reference's inputs: in one prefill, after a past, padded, and in decode steps.

    Yields:
        Name of the feeding, position of the first token, mask of the tokens (bool ``(B, n)``), results of the layers.
    """
    ids, prompt = inside.ids, len(inside.scenario.prompt)
    total, half = ids.shape[1], prompt // 2

    def plain(start: int, stop: int, decode: bool = False) -> tuple[int, Array, LayerStates]:
        rows = slice(start, stop)
        tokens = NewTokens.after(ids[:, rows], start)
        states = layers.run(tokens, inside.past(start), inside.residuals(rows), decode)
        tick()
        return start, np.ones((1, stop - start), dtype=bool), states

    yield PREFILL, *plain(0, total)
    if half:
        yield CONTINUED, *plain(half, prompt)
    yield PADDED, 0, *_padded(layers, inside, prompt)
    tick()
    for position in range(prompt, total):
        yield DECODE, *plain(position, position + 1, decode=True)


def _padded(layers: Layers, inside: ReferenceStates, prompt: int) -> tuple[Array, LayerStates]:
    """Prefill two copies of the prompt in a batch, one padded left and one right with the prompt's first token."""

    def pad(rows: Array) -> Array:  # (1, n, …) to (2, PADDING + n, …)
        filler = np.repeat(rows[:, :1], PADDING, axis=1)
        return np.concatenate([np.concatenate(pair, axis=1) for pair in ((filler, rows), (rows, filler))])

    ids = pad(inside.ids[:, :prompt])
    mask = np.ones(ids.shape, dtype=bool)
    mask[0, :PADDING] = mask[1, prompt:] = False
    residuals = [pad(x) for x in inside.residuals(slice(0, prompt))]
    return mask, layers.run(NewTokens.after(ids, mask=mask), layers.empty_past(batch=2), residuals)


def own_errors(layers: Layers, inside: ReferenceStates, tick: Tick) -> OwnErrors:
    """Return the own errors of every part by feeding and position, each the maximum over the batch rows."""
    errors: OwnErrors = {}
    wanted = parts_of(inside.states, inside.layers)
    scales = {part: _scale(rows, part) for part, rows in wanted.items()}
    first_logits = len(inside.scenario.prompt) - 1
    for feeding, start, mask, states in rerun(layers, inside, tick):
        count = int(mask[0].sum())
        for part, actual in parts_of(states, inside.layers).items():
            if part.is_logits:
                last = start + count - 1
                reference, at = inside.logits[:, last - first_logits][:, None], np.array([last])
                found, scale = actual, np.linalg.norm(reference, axis=-1)[0]
            else:
                at = np.arange(start, start + count)
                reference, scale = wanted[part][:, at], scales[part][at]
                found = actual[mask].reshape(len(mask), count, -1)
            with np.errstate(all="ignore"):
                difference = np.linalg.norm(found.astype(np.float64) - reference, axis=-1).max(axis=0)
                error = np.where((scale == 0) & (difference == 0), 0.0, difference / scale)
            places = errors.setdefault(part, {})
            before = places.get(feeding, (np.zeros(0, dtype=np.int64), np.zeros(0)))
            places[feeding] = (np.concatenate([before[0], at]), np.concatenate([before[1], error]))
    return errors


def own_gates(baseline: OwnErrors, dtype: str) -> dict[TensorId, Gate]:
    """Derive the gate of each part's own error from the own errors of the baseline."""
    gates = {}
    for part, feedings in baseline.items():
        worst = max(float(errors.max()) for _, errors in feedings.values())
        gates[part] = Gate(max(FACTOR * worst, FLOOR_UNITS * UNIT[dtype]), worst)
    return gates


def findings(own: OwnErrors, gates: Mapping[TensorId, Gate], scenario: str) -> list[WorstOwnError]:
    """Return each part's first error beyond its gate, or its largest error, in the order of computation."""
    found = []
    for part in sorted(own):
        gate = gates[part]
        beyond = [
            (feeding, int(np.argmax(~(errors <= gate.limit))))  # not "errors > limit": NaN must fail
            for feeding, (_, errors) in own[part].items()
            if not (errors <= gate.limit).all()
        ]
        if beyond:
            feeding, index = beyond[0]
        else:
            feeding = max(own[part], key=lambda name: float(own[part][name][1].max()))
            index = int(own[part][feeding][1].argmax())
        positions, errors = own[part][feeding]
        at, error = int(positions[index]), float(errors[index])
        found.append(WorstOwnError(scenario, part, feeding, at, error, gate, bool(beyond)))
    return found


def parts_of(states: LayerStates, layers: Sequence[LayerDescription]) -> dict[TensorId, Array]:
    """Return the tensors of a call in the order of computation, each ``(B, n, F)``; logits ``(B, 1, vocab)``.

    The embedding has the layer −1. Rings and states are left out: errors in them show in the layer's output.
    """
    last = KINDS.index("logits")
    parts = {TensorId(-1, last, "embedding"): states.residuals[0]}
    for index, layer in enumerate(layers):
        for place, tensor in enumerate(decoded_layout(layer.cache)):
            if tensor.sort == "rows":
                parts[TensorId.of(index, place, tensor, layer)] = _rows(states.cached[index][tensor.name])
        parts[TensorId(index, last, "output")] = states.residuals[index + 1]
    parts[TensorId(len(layers), last)] = states.logits
    return parts


def _rows(heads: Array) -> Array:
    """Reshape rows of all heads, ``(B, KV, n, D)``, to ``(B, n, KV·D)``."""
    return heads.transpose(0, 2, 1, 3).reshape(heads.shape[0], heads.shape[2], -1)


def _scale(rows: Array, part: TensorId) -> Array:
    """Return the norms that errors are relative to, ``(T,)``; for Y the largest norm so far, as in :mod:`.metrics`."""
    norms = np.linalg.norm(rows[0].astype(np.float64), axis=-1)
    return np.maximum.accumulate(norms) if part.accumulated else norms
