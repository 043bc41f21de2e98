"""From an error to a cause: compute what known mistakes would give, and name the one that fits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lucid_deploy.cache.storage import SCALE
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.rope_settings import Rope
from lucid_deploy.parity.causes.localise import DECODE, ReferenceStates, WorstOwnError, rerun
from lucid_deploy.parity.causes.solve_analysis import TOKENS, kernel, normalized, row_factors, substitute
from lucid_deploy.parity.metrics import round_to
from lucid_deploy.parity.record import Tick
from lucid_deploy.plugins.table import DIAGONALS, TRAINING, UNIT
from lucid_deploy.runtimes.layers import Layers, LayerStates
from lucid_deploy.runtimes.session import Array

FITS = 0.25  # a guess explains an error if it leaves at most this share of it
CONFINED = 0.95  # share of an error's energy that must lie in one place to speak of it
LOW_E = "E (the exponentials) is in {}; it must be float32."
WORDS = {UNIT: "1", TRAINING: "training's"}
LARGE = 0.3  # relative error from which on a tensor is another one rather than a bad one


@dataclass(frozen=True)
class Evidence:
    """One layer's tensors at the tokens where it failed, of one batch row, and the reference's.

    Attributes:
        keys: What the candidate's layer gives on the reference's inputs, ``(KV, n, D)``.
        values: Its V.
        solved: Its Y.
        wanted: The reference's K, V and Y of the whole sequence, float64 ``(KV, T, D)``.
        positions: Of the rows, ``(n,)``.
        decode: Whether each row was a call of its own.
        diagonal: That of the layer's system, as in its description.
        eps: The model's ``rms_norm_eps``.
    """

    keys: Array
    values: Array
    solved: Array
    wanted: tuple[Array, Array, Array]
    positions: Array
    decode: bool
    diagonal: str = UNIT
    eps: float = 0.0

    def solve(self, e: Array, diagonal: float | Array | None = None) -> Array:
        """Solve for the rows exactly, after the reference's cache, with E given as ``(KV, n, T)``.

        Args:
            e: E.
            diagonal: Another one of L than the layer's: a number, or one for each row, ``(KV, n, 1)``.
        """
        diagonal = self.diagonal_of(self.diagonal) if diagonal is None else diagonal
        past, v = self.wanted[2], self.values.astype(np.float64)
        if self.decode:
            earlier = np.arange(past.shape[1]) < self.positions[:, None]  # (n, T)
            return (v - np.where(earlier, e, 0.0) @ past) / diagonal
        start = int(self.positions[0])
        stop = int(self.positions[-1]) + 1
        return substitute(e[..., :stop] / diagonal, v / diagonal, past[:, :start])

    def diagonal_of(self, diagonal: str) -> Array:
        """Return the diagonal of L that the rows' keys give, ``(KV, n, 1)``."""
        return np.asarray(1 / row_factors(self.keys.astype(np.float64), self.eps, diagonal))

    def kernel(self, eps: float, unit_type: str = "float64") -> Array:
        """Return E of the rows against all tokens, ``(KV, n, T)``, from keys normalised and then rounded to a type."""
        columns = self.wanted[0]
        if not self.decode:  # rows of one call see each other's keys as the candidate has them
            columns = columns.copy()
            columns[:, self.positions] = self.keys
        return kernel(self.keys, columns, eps, unit_type)


def hint(layers: Layers, inside: ReferenceStates, failed: list[WorstOwnError], tick: Tick) -> str:
    """Name a likely reason for the first own error, in one or two sentences.

    Args:
        layers: The candidate.
        inside: The reference in the scenario of the findings.
        failed: The findings beyond their gates in that scenario, in the order of computation; not empty.
        tick: Called after every call of the candidate.
    """
    first = failed[0]
    part, config = first.part, layers.config
    if part.layer < 0:
        return "The embedding table is not the checkpoint's."
    if part.layer == part.layers:
        return "Every layer is right by itself, so the final norm or the head (lm_head) is wrong."
    others = sorted({item.part.layer for item in failed if item.error > LARGE and 0 <= item.part.layer < part.layers})
    swapped = ""
    if len(others) == 2 and part.layer in others:
        swapped = f" Layers {others[0]} and {others[1]} are each wrong by themselves: were they swapped?"
    described = layers.layers[part.layer]
    if {(tensor.name.removesuffix(SCALE), tensor.sort) for tensor in described.cache} != {
        ("key", "rows"),
        ("value", "rows"),
    }:
        return f"It is a layer of kind {described.kind}: no guesses are made about what is wrong in it.{swapped}"
    values = "Y" if described.solves else "V"
    if part.word == "output":
        where = "its queries, its attention, its output projection or its MLP"
        return f"Its K and {values} are right, so the error arises behind them: {where}.{swapped}"
    evidence = gather(layers, inside, first, tick)
    if evidence is None:
        return f"The error appears only after token {TOKENS}; causes are looked for in the tokens before it.{swapped}"
    if not np.isfinite(evidence.keys if part.word == "K" else evidence.solved).all():
        before = "" if np.isfinite(evidence.values).all() else " So does V, before the solve."
        return f"It holds NaN or infinity.{before}{swapped}"
    if part.word == "K":
        return _keys_hint(evidence, config, config.rope(part.layer), values) + swapped
    return _solved_hint(evidence, config, described.solves) + swapped


def gather(layers: Layers, inside: ReferenceStates, finding: WorstOwnError, tick: Tick) -> Evidence | None:
    """Run the feeding that failed once more and return the layer's tensors.

    Of two batch rows it takes the one with the larger error.

    Returns:
        None if no row lies within the first ``TOKENS`` tokens.
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
    """Return K, V and Y of a layer that caches keys and values; V is Y if it has no solve."""
    rows, given = states.cached[layer], states.given[layer]
    return rows["key"], rows["value"] if given is None else given, rows["value"]


def _keys_hint(evidence: Evidence, config: LucidConfig, rope: Rope | None, values: str) -> str:
    wanted = evidence.wanted[0][:, evidence.positions]
    guesses = [
        (f"These are {values}: K and {values} are swapped in the cache.", evidence.wanted[2][:, evidence.positions]),
        (
            "These are normalised keys; the cache must hold the raw ones.",
            normalized(wanted, config.rms_norm_eps),
        ),
    ]
    if rope is not None:
        for shift, words in ((1, "too far"), (-1, "short")):
            text = f"Rotary positions are off by one: these keys are rotated by one position {words}."
            guesses.append((text, turned(wanted, rope, np.full(len(evidence.positions), shift))))
        bare = turned(wanted, rope, -evidence.positions)
        guesses.append(("Rotary embedding is missing: these keys are not rotated.", bare))
    return _best(guesses, evidence.keys, wanted) or _confined(
        evidence.keys, wanted, "A weight that K is made from (k_proj, or the norm before it) is not the checkpoint's"
    )


def _solved_hint(evidence: Evidence, config: LucidConfig, solves: bool) -> str:
    wanted = evidence.wanted[2][:, evidence.positions]
    weights = "V is wrong before the solve: a weight of v_proj is not the checkpoint's"
    if not solves:
        return _confined(evidence.solved, wanted, weights)
    eps, actual = config.rms_norm_eps, evidence.solved
    e = evidence.kernel(eps)
    exact = evidence.solve(e)
    if _distance(exact, wanted) > (1 - FITS) * _distance(actual, wanted):  # right for its own K and V
        return _confined(actual, wanted, weights)
    gain = math.exp(-math.sqrt(config.head_dim))
    low = {kind: [round_to(e, kind), gain * round_to(e / gain, kind)] for kind in ("bfloat16", "float16")}
    guesses = [
        ("Y equals V: the solve was left out.", evidence.values),
        ("This is K: K and Y are swapped in the cache.", evidence.wanted[0][:, evidence.positions]),
        ("The cached tokens have no part in the solve.", evidence.solve(_without_past(e, evidence))),
        (
            "Scores are made from keys rounded to bfloat16; they must be float32.",
            evidence.solve(evidence.kernel(eps, "bfloat16")),
        ),
        # Rounded with the constant factor exp(−√d) in it, or before that is multiplied.
        *((LOW_E.format(kind), evidence.solve(rounded)) for kind, pair in low.items() for rounded in pair),
    ]
    guesses += [
        (
            f"The diagonal of L is {WORDS[other]}; this artifact's is {WORDS[evidence.diagonal]}.",
            evidence.solve(e, made),
        )
        for other in DIAGONALS
        if other != evidence.diagonal
        for made in [evidence.diagonal_of(other)]
    ]
    row = int(np.argmin(evidence.positions))
    if evidence.positions[row] == 0 and evidence.diagonal == UNIT:  # c · y_0 = v_0
        y, v = actual[:, row], evidence.values[:, row]
        diagonal = float(np.vdot(v, v) / np.vdot(y, v))
        if np.isfinite(diagonal) and diagonal != 0:
            guesses.append((f"The diagonal of L is {diagonal:.5g}; it must be exactly 1.", evidence.solve(e, diagonal)))
    return _best(guesses, actual, exact) or "K and V are right, so the solve itself is wrong in this layer."


def turned(keys: Array, rope: Rope, shift: Array) -> Array:
    """Rotate rotated keys ``(KV, n, D)`` further, by ``shift`` positions ``(n,)``."""
    from lucid_deploy.model.rope import inverse_frequencies

    angles = shift[:, None] * inverse_frequencies(rope, keys.shape[-1]).double().numpy()  # (n, D/2)
    a, b = np.split(keys, 2, axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _without_past(e: Array, evidence: Evidence) -> Array:
    own = np.isin(np.arange(e.shape[-1]), [] if evidence.decode else evidence.positions)
    return np.where(own, e, 0.0)


def _distance(actual: Array, wanted: Array) -> float:
    with np.errstate(all="ignore"):
        return float(np.linalg.norm(actual - wanted))


def _best(guesses: list[tuple[str, Array]], actual: Array, wanted: Array) -> str | None:
    """Return the guess that comes closest, if it leaves little of the error; None if none does."""
    left = [(_distance(actual, guess), text) for text, guess in guesses]
    distance, text = min((pair for pair in left if math.isfinite(pair[0])), default=(math.inf, ""))
    return text if distance <= FITS * _distance(actual, wanted) else None


def _confined(actual: Array, wanted: Array, cause: str) -> str:
    """Add to a cause where the error lies, if that is one head or a few features of it, or the whole tensor's size."""
    error = np.square(actual - wanted).sum(axis=1)  # (KV, D)
    total, head = error.sum(), int(error.sum(axis=1).argmax())
    factor = float(np.vdot(wanted, actual) / np.vdot(wanted, wanted))
    if _distance(actual, factor * wanted) <= FITS * _distance(actual, wanted):
        return f"{cause}: it is the right one times {factor:.5g}."
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
