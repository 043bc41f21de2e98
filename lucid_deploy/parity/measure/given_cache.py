"""Steps from a given cache: how a candidate *reads* a cache that rounds, apart from what rounding costs.

What rounding costs hides a fault in reading that is smaller than it: keys read 1 % too small change no size, since the
solve normalises keys, and change scores by less than int8's rounding does. So all models are handed the same stored
rows: those of the float64 run that rounds its cache to the same type. A row that was decoded and is encoded again gives
the same codes, and new rows see each other as they were computed. So nothing rounds to the cache's type between the
given rows and the logits, and the gates are those of arithmetic alone: ``FACTOR`` times the baseline's largest error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lucid_deploy.model.scenarios import Scenario
from lucid_deploy.parity.measure.compare import KINDS, TensorId, TensorRows, Tick, Trace
from lucid_deploy.parity.measure.gate import Comparison, Gate, compare_rows, derive_gates, widest
from lucid_deploy.runtimes.session import Array, Cache, Session

STEPS = 4  # decode steps, each from rows given anew
Answers = dict[str, Trace]  # the logits, by which graph read the rows


def calls(scenario: Scenario) -> int:
    """Return how often :func:`answers` calls the session."""
    return 1 + min(STEPS, len(scenario.forced))


def answers(session: Session[Any], scenario: Scenario, rounded: Trace, tick: Tick) -> Answers:
    """Go on from stored rows by decoding and by a prefill; return the logits.

    Args:
        session: Any runtime.
        scenario: The tokens: the rows given are those of the prompt and of the forced tokens before each step.
        rounded: K and Y of the whole scenario, as a cache of the session's type holds them.
        tick: Called after every call of the session.
    """
    prompt, steps = len(scenario.prompt), []
    for step in range(min(STEPS, len(scenario.forced))):
        given = _cache(session, rounded, prompt + step)
        steps.append(session.decode(scenario.forced[None, step : step + 1], given))  # (1, 1, vocab)
        tick()
    prefilled = session.prefill(scenario.forced[None], _cache(session, rounded, prompt))  # (1, 1, vocab)
    tick()
    name = TensorId(session.config.num_hidden_layers, KINDS.index("logits"))
    return {
        "decode from given rows": Trace({name: TensorRows(np.concatenate(steps, axis=1), prompt)}),
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
    """Return a cache of the first tokens' rows."""

    def rows(layer: int, kind: str) -> Array:
        return _heads(session, rounded.tensors[TensorId(layer, KINDS.index(kind))], tokens)

    layers: list[tuple[Array, ...]] = [
        (rows(layer, "K"), rows(layer, "Y")) for layer in range(session.config.num_hidden_layers)
    ]
    return session.cache_from_arrays(layers, np.ones((1, tokens), dtype=bool))


def _heads(session: Session[Any], rows: TensorRows, tokens: int) -> Array:
    """Return rows ``(1, T, KV·D)`` as the first tokens of ``(1, KV, T, D)``."""
    config = session.config
    split = rows.values[:, :tokens].reshape(1, tokens, config.num_key_value_heads, config.head_dim)
    return np.ascontiguousarray(split.transpose(0, 2, 1, 3))
