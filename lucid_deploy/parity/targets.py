"""Derive the targets that a candidate is compared with: the reference's tensors and the gates of each scenario."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lucid_deploy.model.synthetic_tokens import CORRELATED
from lucid_deploy.parity import rounded_cache
from lucid_deploy.parity.gate import FACTOR, Comparison, Gate, Gates, compare_rows, derive_gates, share_gates
from lucid_deploy.parity.progress import CallCounter, Progress
from lucid_deploy.parity.record import TensorId, TensorRows, Trace, record_at_once, record_greedy
from lucid_deploy.parity.rounded_targets import Rounding, derive_roundings
from lucid_deploy.parity.scenarios import FULL, ONE_SHOT, Scenario, Workload, all_scenarios, equal_lengths
from lucid_deploy.runtimes.session import Array, Session

Source = Session[Any] | Callable[[], Session[Any]]  # a session, or a function that opens one


def opened(source: Source) -> Session[Any]:
    """Return the session, opening it if ``source`` is a function."""
    return source() if callable(source) else source


@dataclass(frozen=True)
class Reference:
    """Describes a model, or a file of its results, that a candidate is compared with."""

    kind: str  # short name for programs, such as "own model"
    words: str  # description for people, to follow "against"
    left_out: str = ""  # a sentence about the part of it that was not compared, if any


OWN_MODEL = Reference("own model", "this toolkit's own PyTorch model in float64")
DEQUANTIZED = Reference(
    "own model, dequantized",
    "this toolkit's own PyTorch model in float64 on the artifact's dequantized weights",
)


@dataclass(frozen=True)
class OtherTrace:
    """The results of another implementation in one scenario.

    Our own model's gate allows for rounding in the candidate's precision. The other implementation's results have
    rounding errors, too: those of computing in its type (at most ``FACTOR`` times the error that our own model makes in
    that type), and one unit in the last place of the type that they are stored in. Both depend only on the types and on
    the conditioning of the model, so a misread configuration does not widen them.
    """

    reference: Reference
    trace: Trace  # tensors and positions that it lacks are not compared
    rounding: Mapping[TensorId, float]  # by tensor, what is added to our own model's gate

    def compare(self, found: Trace, gates: Gates, scenario: str, schedule: str) -> list[Comparison]:
        """Compare a candidate's trace with this one, within our own model's ``gates`` plus ``rounding``."""
        made = []
        for tensor, rows in self.trace.tensors.items():
            actual, wanted = common_positions(found.tensors[tensor], rows)
            if wanted.values.shape[1]:
                rounding, own = self.rounding[tensor], gates[tensor]
                gate = Gate(own.limit + rounding, own.baseline + rounding / FACTOR)
                comparison = compare_rows(actual, wanted, tensor, gate, scenario, schedule)
                made.append(replace(comparison, against=self.reference.kind))
        return made


def common_positions(first: TensorRows, second: TensorRows) -> tuple[TensorRows, TensorRows]:
    """Cut two tensors to the positions that both have."""
    start = max(first.start, second.start)
    stop = max(min(rows.start + rows.values.shape[1] for rows in (first, second)), start)
    one, other = (TensorRows(rows.values[:, start - rows.start : stop - rows.start], start) for rows in (first, second))
    return one, other


@dataclass(frozen=True)
class Target:
    """What a candidate must compute in one scenario."""

    scenario: Scenario
    reference: Trace  # in float64
    gates: Gates  # how far from the reference each tensor may be
    other: OtherTrace | None = None  # what another implementation computed for the same tokens
    rounding: Rounding | None = None  # further traces and gates; None unless the cache rounds


@dataclass(frozen=True)
class Targets:
    """All targets of one model in one precision, for any number of candidates."""

    items: tuple[Target, ...]  # one for each scenario
    dtype: str  # the precision that the gates were derived for
    seed: int
    cache_dtype: str = ""  # the cache dtype that the gates were derived for; empty: the same as `dtype`
    workload: Workload = FULL


def explained_scenarios(targets: Targets, failing: str | None = None) -> list[Target]:
    """Return up to ``workload.explained`` targets to search for causes: failing, correlated and greedy scenarios."""
    names = [failing, CORRELATED, *(item.scenario.name for item in targets.items if item.scenario.greedy)]
    by_name = {item.scenario.name: item for item in targets.items}
    return [by_name[name] for name in dict.fromkeys(names) if name in by_name][: targets.workload.explained]


def prepare(
    baseline: Source,
    reference: Source,
    *,
    seed: int = 0,
    prompt: Array | None = None,
    embeddings: Array | None = None,
    rounded: Source | None = None,
    workload: Workload = FULL,
    more: Sequence[Scenario] = (),
    progress: Progress | None = None,
) -> Targets:
    """Run baseline and reference over all scenarios; return the targets: the reference's results, and gates.

    Args:
        baseline: PyTorch in the candidate's precision, or a function that opens it. Its errors set the gates.
        reference: PyTorch in float64, or a function that opens it; ValueError if it computes in another type.
        prompt: Token ids of a real prompt, int ``(P,)``; the baseline continues it greedily.
        embeddings: ``(vocab, hidden)``, from which correlated tokens are chosen.
        rounded: PyTorch in float64 whose cache rounds as the candidate's does; ValueError if needed and missing.
        more: Scenarios beside the synthetic ones.
    """
    session = opened(baseline)
    rounds = rounded_cache.rounds(session)
    workload = workload.with_all_steps() if rounds else workload
    if session.multi_token_unsupported_reason is not None:  # wrong drafts cannot be removed from a state or a ring
        workload = replace(workload, schedules=tuple(item for item in workload.schedules if not item.drafts))
    scenarios = [*all_scenarios(session.config, workload, seed, prompt, embeddings), *more]
    if rounds:  # fail before anything is computed
        rounded_cache.refuse_dropped_rows(session, max(scenario.length for scenario in scenarios))
    scenarios, own = _record_baseline(session, scenarios, progress)
    exact = _record_reference(reference, scenarios, progress)
    gates = [derive_gates(exact[scenario.name], own[scenario.name], session.dtype) for scenario in scenarios]
    gates = share_gates(scenarios, gates, workload)
    items = [Target(scenario, exact[scenario.name], found) for scenario, found in zip(scenarios, gates, strict=True)]
    if rounds:
        if rounded is None:
            raise ValueError(f"a cache in {session.cache_dtype} needs a float64 reference that rounds its cache, too")
        added = derive_roundings(session, opened(rounded), own, exact, scenarios, workload, progress)
        items = [replace(item, rounding=rounding) for item, rounding in zip(items, added, strict=True)]
    return Targets(tuple(items), session.dtype, seed, cache_dtype=session.cache_dtype, workload=workload)


def _record_baseline(
    session: Session[Any], scenarios: list[Scenario], progress: Progress | None
) -> tuple[list[Scenario], dict[str, Trace]]:
    """Run the baseline one-shot; return the scenarios, the greedy one with the tokens generated, and traces by name."""
    total = sum(ONE_SHOT.calls(group[0]) for group in equal_lengths(scenarios))
    meter = CallCounter(progress, f"PyTorch in {session.dtype}: the gates", total)
    return record_greedy(session, scenarios, meter.tick)


def _record_reference(reference: Source, scenarios: list[Scenario], progress: Progress | None) -> dict[str, Trace]:
    """Run the float64 model over all scenarios; return their traces by name."""
    session = opened(reference)
    if session.dtype != "float64":
        raise ValueError(f"the reference must compute in float64, not {session.dtype}")
    calls = 2 * len(equal_lengths(scenarios))
    meter = CallCounter(progress, "PyTorch in float64: the reference", calls)
    return record_at_once(session, scenarios, meter.tick)
