"""Find where an error starts, and name a likely cause.

The error starts in the first part of the model whose own error (:mod:`.own_errors`) is beyond its gate. For that part,
we compute the tensor that each known mistake would give, and report the mistake whose tensor is nearest to the
artifact's if it is close. Only the first ``TOKENS`` tokens are used, which keeps the dense matrices E and L small.
Later tokens do not change the result: L is lower triangular, so its leading block is the L of the leading tokens.

Shapes: KV key/value heads, P cached tokens, n new tokens, T first tokens of the scenario (≤ ``TOKENS``), D head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lucid_deploy.cache.storage import SCALE
from lucid_deploy.model.config import Rope
from lucid_deploy.parity.own_errors import (
    DECODE,
    ReferenceStates,
    WorstOwnError,
    calls,
    findings,
    look_inside,
    own_errors,
    own_gates,
    rerun,
)
from lucid_deploy.parity.progress import CallCounter, Progress, Tick
from lucid_deploy.parity.targets import Target
from lucid_deploy.plugins.table import DIAGONALS, TRAINING, UNIT
from lucid_deploy.runtimes.layers import Layers, LayerStates
from lucid_deploy.runtimes.session import Array

TOKENS = 512  # causes are searched for in the first 512 tokens: E of one head, in float64, then takes 2 MiB
FITS = 0.25  # a guess explains an error if its tensor's distance from the guess is at most this share of it
CONFINED = 0.95  # a hint names a head, or one or two features, that have at least this share of the squared error
LARGE = 0.3  # a tensor with a larger relative error may belong to another layer
LOW_E = "E (the exponentials) is in {}; it must be float32."
WORDS = {UNIT: "1", TRAINING: "training's"}


@dataclass(frozen=True)
class Explanation:
    """Where an error starts, and why."""

    scenarios: tuple[str, ...]  # names of the scenarios that were rerun; the one that failed, if any, comes first
    findings: tuple[WorstOwnError, ...] = ()  # by scenario and part: the first error beyond the gate, else the largest
    hint: str = ""  # a likely cause of the first own error beyond its gate
    unavailable: str | None = None  # why the layers could not be run one by one

    @property
    def origin(self) -> WorstOwnError | None:
        """The first part, in the order of computation, whose own error is beyond its gate."""
        return min((item for item in self.findings if item.failed), key=lambda item: item.part, default=None)

    @property
    def every_layer_passed(self) -> bool:
        """Whether no own error is beyond its gate, and each part could be judged in some scenario."""
        judged = {item.part for item in self.findings if item.judged}
        return bool(self.findings) and self.origin is None and judged == {item.part for item in self.findings}

    def sentence(self, failed: bool, unproven: bool = False) -> str:
        """Say where errors start, or why that is unknown; empty if no own error failed and both arguments are False."""
        origin = self.origin
        if origin is not None:
            verb = "starts" if failed else "would start"
            return (
                f"The error {verb} in {origin.part}: on the reference's own inputs its error is "
                f"{origin.error:.2g}, its gate {origin.gate.limit:.2g} ({origin.feeding}, {origin.scenario}, position "
                f"{origin.position}). {self.hint}"
            )
        if not (failed or unproven):
            return ""
        if self.unavailable is not None or not self.findings:
            return self.unavailable or ""
        judged = sum(item.judged for item in self.findings)
        every = f"every part that could be judged ({judged} of {len(self.findings)})"
        every = every if judged < len(self.findings) else "every layer"
        found = f"On the reference's own inputs {every} stays within its gate."
        if not failed:
            return found
        return (
            f"{found} So no layer is wrong by itself: either many small errors add up, or what is passed between calls "
            "(the cache, masks, positions) is wrong."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "scenarios": self.scenarios,
            "origin": None if self.origin is None else _finding_dict(self.origin),
            "hint": self.hint,
            "layers_unavailable": self.unavailable,
            "own_errors": [_finding_dict(item) for item in self.findings],
        }


def _finding_dict(item: WorstOwnError) -> dict[str, Any]:
    return {
        "scenario": item.scenario,
        "part": str(item.part),
        "feeding": item.feeding,
        "position": item.position,
        "error": item.error,
        "gate": item.gate.limit,
        "baseline_error": item.gate.baseline,
        "passed": not item.failed,
        "judged": item.judged,
    }


def explain(
    targets: Sequence[Target],
    layers: Layers,
    baseline: Callable[[], Layers],
    reference: Callable[[], Layers],
    *,
    progress: Progress | None = None,
) -> Explanation:
    """Rerun the targets' scenarios to find the layer and part in which the error of the candidate's ``layers`` starts.

    The hint is about the earliest part that fails, in the first scenario where it does. Models are opened in turn.
    """
    model, inside = reference(), []
    meter = CallCounter(progress, "Causes: the reference's layers", len(targets))
    for target in targets:
        inside.append(look_inside(model, target.scenario, target.reference))
        meter.tick()
    total, model = sum(calls(item.scenario) for item in inside), baseline()
    meter = CallCounter(progress, f"Causes: PyTorch's layers in {model.dtype}", total)
    gates = [own_gates(own_errors(model, item, meter.tick), layers.dtype) for item in inside]
    del model
    meter = CallCounter(progress, "Causes: the artifact's layers", total)
    found = [
        findings(own_errors(layers, item, meter.tick), allowed, item.scenario.name)
        for item, allowed in zip(inside, gates, strict=True)
    ]
    failed = [(item.part, index) for index, items in enumerate(found) for item in items if item.failed]
    words = ""
    if failed:
        where = min(failed)[1]
        meter = CallCounter(progress, "Causes: trying guesses", calls(inside[where].scenario))
        words = hint(layers, inside[where], [item for item in found[where] if item.failed], meter.tick)
    return Explanation(
        tuple(item.scenario.name for item in inside), tuple(item for items in found for item in items), words
    )


def hint(layers: Layers, inside: ReferenceStates, failed: list[WorstOwnError], tick: Tick) -> str:
    """Name a likely cause of the first error in ``failed``, in one or two sentences.

    ``failed`` are the own errors beyond their gates in one scenario, in the order of computation.
    """
    first = failed[0]
    part = first.part
    if part.layer < 0:
        return "The embedding table is not the checkpoint's."
    if part.is_logits:
        return "Every layer is right by itself, so the final norm or the head (lm_head) is wrong."
    inside_layers = [item for item in failed if item.part.layer >= 0 and not item.part.is_logits]
    wrong = sorted({item.part.layer for item in inside_layers if item.error > LARGE})
    swapped = ""
    if len(wrong) == 2 and part.layer in wrong:
        swapped = f" Layers {wrong[0]} and {wrong[1]} are each wrong by themselves: were they swapped?"
    return _layer_hint(layers, inside, first, tick) + swapped


def _layer_hint(layers: Layers, inside: ReferenceStates, first: WorstOwnError, tick: Tick) -> str:
    part, described = first.part, layers.layers[first.part.layer]
    rows = {(tensor.name.removesuffix(SCALE), tensor.sort) for tensor in described.cache}
    if rows != {("key", "rows"), ("value", "rows")}:
        return f"There are no hints for layers of kind {described.kind}."
    values = "Y" if described.solves else "V"
    if part.word == "output":
        where = "its queries, its attention, its output projection or its MLP"
        return f"Its K and {values} are right, so the error arises after them: {where}."
    evidence = gather(layers, inside, first, tick)
    if evidence is None:
        return f"The error appears only after token {TOKENS}; causes are searched for only before it."
    if not np.isfinite(evidence.keys if part.word == "K" else evidence.solved).all():
        before = "" if np.isfinite(evidence.values).all() else " So does V, before the solve."
        return f"It contains NaN or infinity.{before}"
    if part.word == "K":
        return _keys_hint(evidence, layers.config.rope(part.layer), values)
    return _solved_hint(evidence, described.solves)


@dataclass(frozen=True)
class Evidence:
    """K, V and Y of one layer, from the reference and from the candidate's calls that were fed as the failed one."""

    keys: Array  # K that the candidate computes on the reference's inputs, in the worst batch rows, float64 (KV, n, D)
    values: Array  # the same for V
    solved: Array  # the same for Y
    wanted: tuple[Array, Array, Array]  # the reference's K, V and Y of the first TOKENS tokens, float64 (KV, T, D)
    positions: Array  # positions of the n rows in the sequence, (n,)
    decode: bool  # whether each row was computed by a decode step of its own
    diagonal: str = UNIT  # the kind of L's diagonal in this layer, one of DIAGONALS
    eps: float = 0.0  # the model's rms_norm_eps

    def solve(self, e: Array, diagonal: float | Array | None = None) -> Array:
        """Solve ``L Y = V`` in float64 for the rows, with E ``(KV, n, T)`` and the reference's Y of cached tokens.

        ``diagonal`` of L is one number or one for each row, ``(KV, n, 1)``; None: the layer's own.
        """
        diagonal = self.diagonal_of(self.diagonal) if diagonal is None else diagonal
        past, v = self.wanted[2], self.values.astype(np.float64)
        if self.decode:
            earlier = np.arange(past.shape[1]) < self.positions[:, None]  # (n, T)
            return (v - np.where(earlier, e, 0.0) @ past) / diagonal
        start, stop = int(self.positions[0]), int(self.positions[-1]) + 1
        return substitute(e[..., :stop] / diagonal, v / diagonal, past[:, :start])

    def diagonal_of(self, diagonal: str) -> Array:
        """Return the diagonal of L for the rows, ``(KV, n, 1)``; ``diagonal`` names its kind, one of ``DIAGONALS``."""
        if diagonal == UNIT:
            return np.ones_like(self.keys[..., :1])
        ratio = self.eps / (np.square(self.keys).mean(axis=-1, keepdims=True) + self.eps)
        return np.asarray(np.exp(-math.sqrt(self.keys.shape[-1]) * ratio))

    def kernel(self, dtype: str = "float64") -> Array:
        """Return ``E = exp(K̂K̂ᵀ/√D − √D)`` of the rows against T tokens, ``(KV, n, T)``, K̂ rounded to ``dtype``."""
        columns = self.wanted[0]
        if not self.decode:  # within one call, rows use the candidate's keys
            columns = columns.copy()
            columns[:, self.positions] = self.keys
        left, right = (rounded(normalized(keys, self.eps), dtype) for keys in (self.keys, columns))
        root = math.sqrt(self.keys.shape[-1])
        return np.asarray(np.exp(left @ right.swapaxes(-1, -2) / root - root))


def gather(layers: Layers, inside: ReferenceStates, finding: WorstOwnError, tick: Tick) -> Evidence | None:
    """Rerun the candidate's layers; return what the layer of ``finding`` computes when fed in the way that failed.

    Returns:
        Evidence from each call's worst batch row; None if all tokens fed in that way come after the first ``TOKENS``.
    """
    layer, kind = finding.part.layer, 0 if finding.part.word == "K" else 2
    k_ref, v_ref, y_ref = (array[0, :, :TOKENS].astype(np.float64) for array in solve_tensors(inside.states, layer))
    wanted = (k_ref, v_ref, y_ref)
    found: list[tuple[Array, ...]] = []
    for feeding, start, mask, given in rerun(layers, inside, tick):
        if feeding != finding.feeding or start >= TOKENS:
            continue
        at = np.arange(start, min(start + int(mask[0].sum()), TOKENS))
        rows = [
            tuple(array[row].astype(np.float64)[:, mask[row]][:, : len(at)] for array in solve_tensors(given, layer))
            for row in range(len(mask))
        ]
        errors = [float(np.nan_to_num(np.abs(row[kind] - wanted[kind][:, at]).sum(), nan=np.inf)) for row in rows]
        found.append((*rows[int(np.argmax(errors))], at))
    if not found:
        return None
    keys, values, solved, positions = (
        np.concatenate(arrays, axis=min(1, arrays[0].ndim - 1)) for arrays in zip(*found, strict=True)
    )
    diagonal, eps = layers.layers[layer].diagonal, layers.config.rms_norm_eps
    return Evidence(keys, values, solved, wanted, positions, finding.feeding == DECODE, diagonal, eps)


def solve_tensors(states: LayerStates, layer: int) -> tuple[Array, Array, Array]:
    """Return K, V and Y of a layer that caches keys and values; without a solve, Y is V."""
    rows, given = states.cached[layer], states.given[layer]
    return rows["key"], rows["value"] if given is None else given, rows["value"]


def _keys_hint(evidence: Evidence, rope: Rope | None, values: str) -> str:
    wanted = evidence.wanted[0][:, evidence.positions]
    guesses = [
        (f"These are {values}: K and {values} are swapped in the cache.", evidence.wanted[2][:, evidence.positions]),
        ("These are normalised keys; the cache must hold the raw ones.", normalized(wanted, evidence.eps)),
    ]
    if rope is not None:
        for shift, words in ((1, "too far"), (-1, "short")):
            text = f"Rotary positions are off by one: these keys are rotated by one position {words}."
            guesses.append((text, turned(wanted, rope, np.full(len(evidence.positions), shift))))
        bare = turned(wanted, rope, -evidence.positions)
        guesses.append(("Rotary embedding is missing: these keys are not rotated.", bare))
    return _best(guesses, evidence.keys, wanted) or _confined(
        evidence.keys, wanted, "A weight that computes K (k_proj, or the norm before it) is not the checkpoint's"
    )


def _solved_hint(evidence: Evidence, solves: bool) -> str:
    wanted, actual = evidence.wanted[2][:, evidence.positions], evidence.solved
    weights = "V is wrong before the solve: a weight of v_proj is not the checkpoint's"
    if not solves:
        return _confined(actual, wanted, weights)
    e = evidence.kernel()
    exact = evidence.solve(e)
    if _distance(exact, wanted) > (1 - FITS) * _distance(actual, wanted):  # most of Y's error comes from V
        return _confined(actual, wanted, weights)
    own = np.isin(np.arange(e.shape[-1]), [] if evidence.decode else evidence.positions)
    gain = math.exp(-math.sqrt(evidence.keys.shape[-1]))
    guesses = [
        ("Y equals V: the solve was left out.", evidence.values),
        ("This is K: K and Y are swapped in the cache.", evidence.wanted[0][:, evidence.positions]),
        ("The solve ignores the cached tokens.", evidence.solve(np.where(own, e, 0.0))),
        (
            "E is computed from keys rounded to bfloat16; they must be float32.",
            evidence.solve(evidence.kernel("bfloat16")),
        ),
    ]
    for kind in ("bfloat16", "float16"):  # E rounded after, or before, multiplying by the constant exp(−√d)
        guesses += [
            (LOW_E.format(kind), evidence.solve(low)) for low in (rounded(e, kind), gain * rounded(e / gain, kind))
        ]
    for other in DIAGONALS:
        if other != evidence.diagonal:
            text = f"The diagonal of L is {WORDS[other]}; this artifact's is {WORDS[evidence.diagonal]}."
            guesses.append((text, evidence.solve(e, evidence.diagonal_of(other))))
    row = int(np.argmin(evidence.positions))
    if evidence.positions[row] == 0 and evidence.diagonal == UNIT:  # c · y_0 = v_0, c being the diagonal
        y, v = actual[:, row], evidence.values[:, row]
        diagonal = float(np.vdot(v, v) / np.vdot(y, v))
        if np.isfinite(diagonal) and diagonal != 0:
            guesses.append((f"The diagonal of L is {diagonal:.5g}; it must be exactly 1.", evidence.solve(e, diagonal)))
    return _best(guesses, actual, exact) or "K and V are right, so the solve itself is wrong in this layer."


def normalized(keys: Array, eps: float) -> Array:
    """Return K̂: each key of ``(…, D)`` divided by √(its mean square + ``eps``)."""
    return np.asarray(keys / np.sqrt(np.mean(np.square(keys), axis=-1, keepdims=True) + eps))


def rounded(values: Array, dtype: str) -> Array:
    """Round to one of PyTorch's floating-point types; return float64."""
    import torch

    return torch.from_numpy(values).to(getattr(torch, dtype)).double().numpy()


def substitute(e: Array, values: Array, past: Array) -> Array:
    """Solve ``L Y = V`` row by row: ``Y_i = V_i − Σ_{j<i} E_ij Y_j``; return Y of the new tokens, float64.

    Of E ``(KV, n, P + n)`` only the part left of the diagonal is used; V is ``(KV, n, D)``, cached Y ``(KV, P, D)``.
    """
    y = np.concatenate([past, np.empty(values.shape)], axis=1)
    for i, stop in enumerate(range(past.shape[1], y.shape[1])):
        y[:, stop] = values[:, i] - (e[:, i, None, :stop] @ y[:, :stop])[:, 0]  # (KV, D)
    return y[:, past.shape[1] :]


def turned(keys: Array, rope: Rope, shift: Array) -> Array:
    """Rotate keys ``(KV, n, D)``, to which RoPE has been applied, by ``shift`` ``(n,)`` more positions."""
    from lucid_deploy.model.rope import inverse_frequencies

    angles = shift[:, None] * inverse_frequencies(rope, keys.shape[-1]).double().numpy()  # (n, D/2)
    a, b = np.split(keys, 2, axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _distance(actual: Array, wanted: Array) -> float:
    with np.errstate(all="ignore"):
        return float(np.linalg.norm(actual - wanted))


def _best(guesses: list[tuple[str, Array]], actual: Array, wanted: Array) -> str | None:
    """Return the text of the guess nearest to ``actual`` if it explains most of the error; else None."""
    left = [(_distance(actual, guess), text) for text, guess in guesses]
    distance, text = min((pair for pair in left if math.isfinite(pair[0])), default=(math.inf, ""))
    return text if distance <= FITS * _distance(actual, wanted) else None


def _confined(actual: Array, wanted: Array, cause: str) -> str:
    """Add to a cause whether the error is a constant factor, is in one head (or one or two features), or is large."""
    error = np.square(actual - wanted).sum(axis=1)  # (KV, D)
    total, head = error.sum(), int(error.sum(axis=1).argmax())
    factor = float(np.vdot(wanted, actual) / np.vdot(wanted, wanted))
    if _distance(actual, factor * wanted) <= FITS * _distance(actual, wanted):
        return f"{cause}: it is the correct one times {factor:.5g}."
    if error[head].sum() >= CONFINED * total:
        order = np.argsort(-error[head])
        count = int(np.searchsorted(np.cumsum(error[head][order]), CONFINED * total)) + 1
        features = ", ".join(map(str, sorted(order[:count]))) if count <= 2 else ""
        place = f"key/value head {head}" + (f", feature{'s' if count > 1 else ''} {features}" if features else "")
        return f"{cause}: the error lies in {place}."
    relative = _distance(actual, wanted) / float(np.linalg.norm(wanted))
    if relative > LARGE:
        return f"{cause}: it is off by {relative:.0%}, as another layer's would be."
    return f"{cause}."
