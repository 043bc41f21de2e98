"""Steps from a given cache: how a candidate *reads* a cache that rounds, apart from what rounding costs.

What rounding costs hides a fault in reading that is smaller than it: keys read 1 % too small change no size, since the
solve normalises keys, and change scores by less than int8's rounding does. So all models are handed the same stored
rows: those of the float64 run that rounds its cache to the same type. A row that was decoded and is encoded again gives
the same codes, and new rows see each other as they were computed. So nothing rounds to the cache's type between the
given rows and the logits, and the gates are those of arithmetic alone: ``FACTOR`` times the baseline's largest error.

Layers that keep states are handed the states of that run. They are known after the last tokens alone
(:data:`~lucid_deploy.parity.measure.compare.STATES`), so models with such layers go on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lucid_deploy.cache.layout import CacheTensor
from lucid_deploy.cache.storage import decoded_layout
from lucid_deploy.model.scenarios import Scenario
from lucid_deploy.parity.measure.compare import KINDS, STATES, TensorId, TensorRows, Tick, Trace, has_states
from lucid_deploy.parity.measure.gate import Comparison, Gate, compare_rows, derive_gates, widest
from lucid_deploy.runtimes.session import Array, Cache, Session

STEPS = 4  # decode steps, each from rows given anew
Answers = dict[str, Trace]  # the logits, by which graph read the rows


def calls(session: Session[Any], scenario: Scenario) -> int:
    """Return how often :func:`answers` calls the session."""
    return 1 + len(_starts(session, scenario))


def _starts(session: Session[Any], scenario: Scenario) -> range:
    """Return how many tokens are given before each step."""
    prompt, forced = len(scenario.prompt), len(scenario.forced)
    if has_states(session):  # known before all but the last of them
        return range(max(prompt, scenario.length - STATES + 1), scenario.length)
    return range(prompt, prompt + min(STEPS, forced))


def answers(session: Session[Any], scenario: Scenario, rounded: Trace, tick: Tick) -> Answers:
    """Go on from stored rows by decoding and by a prefill; return the logits.

    Args:
        session: Any runtime.
        scenario: The tokens: the rows given are those of the prompt and of the forced tokens before each step.
        rounded: K and Y of the whole scenario, and its last states, as a cache of the session's type holds them.
        tick: Called after every call of the session.
    """
    starts, steps = _starts(session, scenario), []
    forced = scenario.forced[None, starts[0] - len(scenario.prompt) :]  # (1, S)
    for step, start in enumerate(starts):
        given = _cache(session, rounded, start)
        steps.append(session.decode(forced[:, step : step + 1], given))  # (1, 1, vocab)
        tick()
    prefilled = session.prefill(forced, _cache(session, rounded, starts[0]))  # (1, 1, vocab)
    tick()
    name = TensorId(session.config.num_hidden_layers, KINDS.index("logits"))
    return {
        "decode from given rows": Trace({name: TensorRows(np.concatenate(steps, axis=1), starts[0])}),
        "prefill behind given rows": Trace({name: TensorRows(prefilled, scenario.length - 1)}),
    }


def derive(reference: Sequence[Answers], baseline: Sequence[Answers], dtype: str) -> dict[str, dict[TensorId, Gate]]:
    """Return the gates by which graph read the rows: the widest of all scenarios, since each has few positions.

    Args:
        reference: What float64 answered, scenario by scenario.
        baseline: What PyTorch in the candidate's precision answered.
        dtype: That precision.

    Raises:
        LucidError, CheckFailed: As :func:`~lucid_deploy.parity.measure.gate.derive_gates`.
    """
    pairs = list(zip(reference, baseline, strict=True))
    return {way: widest([derive_gates(exact[way], found[way], dtype) for exact, found in pairs]) for way in pairs[0][0]}


def compare(
    found: Answers, reference: Answers, gates: dict[str, dict[TensorId, Gate]], scenario: Scenario
) -> list[Comparison]:
    """Hold a candidate's answers against those of float64."""
    return [
        compare_rows(found[way].tensors[tensor], rows, tensor, gates[way][tensor], scenario.name, way)
        for way, trace in reference.items()
        for tensor, rows in trace.tensors.items()
    ]


def _cache(session: Session[Any], rounded: Trace, tokens: int) -> Cache[Any]:
    """Return a cache of the first tokens: their rows, and the states after them."""
    layers: list[tuple[Array, ...]] = [
        tuple(
            _given(session, rounded.tensors[TensorId.of(layer, place, tensor)], tensor, tokens)
            for place, tensor in enumerate(decoded_layout(layout))
        )
        for layer, layout in enumerate(session.layout)
    ]
    return session.cache_from_arrays(layers, np.ones((1, tokens), dtype=bool))


def _given(session: Session[Any], rows: TensorRows, tensor: CacheTensor, tokens: int) -> Array:
    """Return a state ``(1, …)``, or rows ``(1, T, KV·D)`` as the first tokens of ``(1, KV, T, D)``."""
    if rows.is_state:
        return rows.values[:, tokens - 1 - rows.start].reshape(1, *tensor.shape)
    config = session.config
    split = rows.values[:, :tokens].reshape(1, tokens, config.num_key_value_heads, config.head_dim)
    return np.ascontiguousarray(split.transpose(0, 2, 1, 3))
