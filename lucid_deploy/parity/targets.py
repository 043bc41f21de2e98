"""Derive what a candidate is compared with: the reference's tensors and the gates, scenario by scenario."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.synthetic_tokens import CORRELATED
from lucid_deploy.parity import rounded_cache
from lucid_deploy.parity.gate import FACTOR, Comparison, Gate, compare_rows, derive_gates, widest
from lucid_deploy.parity.options import FULL, Workload
from lucid_deploy.parity.progress import CallCounter, Progress
from lucid_deploy.parity.record import TensorId, TensorRows, Trace, record_all, record_at_once, record_greedy
from lucid_deploy.parity.rounded_cache import Answers, Gates, SizeGates
from lucid_deploy.parity.scenarios import (
    MIN_PROMPT,
    ONE_SHOT,
    Scenario,
    Schedule,
    equal_lengths,
    greedy_prompt,
    synthetic_scenarios,
)
from lucid_deploy.runtimes.session import Array, Session

Source = Session[Any] | Callable[[], Session[Any]]  # a session, or a function that opens it when it is needed


def opened(source: Source) -> Session[Any]:
    """Return the session, opened if need be."""
    return source() if callable(source) else source


@dataclass(frozen=True)
class Reference:
    """Names a model, or a file of its results, that a candidate is compared with."""

    kind: str  # short name, for programs: "own model"
    words: str  # for people, to follow "against"
    left_out: str = ""  # which part of it was not compared, as a sentence


OWN_MODEL = Reference("own model", "this toolkit's own PyTorch model in float64")
DEQUANTIZED = Reference(
    "own model, dequantized",
    "this toolkit's own PyTorch model in float64 on the artifact's dequantized weights",
)


@dataclass(frozen=True)
class OtherTrace:
    """One scenario as another implementation computed it.

    Our own model's gate allows what the candidate's precision costs. Another implementation's numbers carry rounding of
    their own: what computing in its type costs (``FACTOR`` times the error that our own model makes in that type), and
    one unit in the last place of the type that they are stored in. Both depend only on the types and on how the model
    is conditioned, so a misread configuration does not widen them.
    """

    reference: Reference
    trace: Trace  # tensors and positions that it lacks are not compared
    rounding: Mapping[TensorId, float]  # by tensor, the allowance beyond our own model's gate

    def compare(self, found: Trace, gates: Gates, scenario: str, schedule: str) -> list[Comparison]:
        """Compare a candidate's trace with this one; gates are those of our own model, widened by ``rounding``."""
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
    """Return two tensors at the positions that both have."""
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
    # With a cache that rounds, schedules are different functions, so the next three are by schedule:
    schedule_gates: dict[str, Gates] = field(default_factory=dict)
    rounded: dict[str, Trace] = field(default_factory=dict)  # K and Y of float64 with such a cache
    size_gates: dict[str, SizeGates] = field(default_factory=dict)  # how far from 1 the size against `rounded` may be
    answers: Answers = field(default_factory=dict)  # logits that float64 computes after stored rows
    answer_gates: dict[str, Gates] = field(default_factory=dict)  # how far from these the candidate's may be


@dataclass(frozen=True)
class Targets:
    """All targets of one model in one precision; they serve any number of candidates."""

    items: tuple[Target, ...]  # one for each scenario
    dtype: str  # the precision that the gates were derived for
    seed: int
    cache_dtype: str = ""  # the cache's type that the gates were derived for; empty: the same as `dtype`
    workload: Workload = FULL


def explained_scenarios(targets: Targets, failing: str | None = None) -> list[Target]:
    """Return the targets to look for causes in, as many as the workload says: failing, correlated, then greedy."""
    names = [failing, CORRELATED, *(item.scenario.name for item in targets.items if item.scenario.greedy)]
    by_name = {item.scenario.name: item for item in targets.items}
    return [by_name[name] for name in dict.fromkeys(names) if name in by_name][: targets.workload.explained]


def prepare(
    baseline: Source,
    reference: Source,
    *,
    steps: int | None = None,
    seed: int = 0,
    prompt: Array | None = None,
    embeddings: Array | None = None,
    rounded: Source | None = None,
    workload: Workload = FULL,
    more: Sequence[Scenario] = (),
    progress: Progress | None = None,
) -> Targets:
    """Run baseline and reference through all scenarios; return the targets: the reference's results, and gates.

    Args:
        baseline: PyTorch in the candidate's precision, or a function that opens it. Sets the gates.
        reference: PyTorch in float64, or a function that opens it.
        steps: Decode steps after each prompt; None: as the workload says.
        prompt: Token ids of a real prompt, int ``(P,)``; the baseline continues it greedily.
        embeddings: ``(vocab, hidden)``, to choose correlated tokens by.
        rounded: PyTorch in float64 with its cache in the candidate's type; needed where that type rounds.
        more: Scenarios beside the synthetic ones.
    """
    session = opened(baseline)
    workload = workload if steps is None else replace(workload, steps=steps)
    workload = workload.with_all_steps() if rounded_cache.rounds(session) else workload
    if session.multi_token_unsupported_reason is not None:  # drafts cannot be taken back from a state or a ring
        workload = replace(workload, schedules=tuple(item for item in workload.schedules if not item.drafts))
    scenarios = [*_scenarios(session.config, workload, seed, prompt, embeddings), *more]
    if rounded_cache.rounds(session):  # before anything is computed
        rounded_cache.refuse_dropped_rows(session, max(scenario.length for scenario in scenarios))
    scenarios, own = _record_baseline(session, scenarios, progress)
    exact = _record_reference(reference, scenarios, progress)
    gates = [derive_gates(exact[scenario.name], own[scenario.name], session.dtype) for scenario in scenarios]
    items = [
        Target(scenario, exact[scenario.name], _gates_of(scenario, found, gates, workload))
        for scenario, found in zip(scenarios, gates, strict=True)
    ]
    if rounded_cache.rounds(session):
        if rounded is None:
            raise ValueError(f"a cache in {session.cache_dtype} needs a float64 reference that rounds its cache, too")
        items = _add_rounded(rounded, session.cache_dtype, items, workload.schedules, progress)
        items = _add_schedule_gates(session, items, own, workload, progress)
    return Targets(tuple(items), session.dtype, seed, cache_dtype=session.cache_dtype, workload=workload)


def _scenarios(
    config: LucidConfig, workload: Workload, seed: int, prompt: Array | None, embeddings: Array | None
) -> list[Scenario]:
    """Return all scenarios; the greedy one's forced tokens are not known yet."""
    name, ids, steps = greedy_prompt(config, workload.steps, seed, prompt, workload.prompt_tokens)
    made = synthetic_scenarios(config, workload.steps, seed, embeddings, workload.prompt_tokens)
    chosen = [scenario for scenario in made if workload.scenarios is None or scenario.name in workload.scenarios]
    forced = np.zeros(steps, dtype=np.int64)
    return [*chosen, Scenario(name, ids, forced, greedy=True, alone=prompt is None)]


def _record_baseline(
    session: Session[Any], scenarios: list[Scenario], progress: Progress | None
) -> tuple[list[Scenario], dict[str, Trace]]:
    """Run the baseline one-shot; return scenarios, the greedy one with the baseline's tokens, and traces by name."""
    total = sum(ONE_SHOT.calls(group[0]) for group in equal_lengths(scenarios))
    meter = CallCounter(progress, f"PyTorch in {session.dtype}: the gates", total)
    return record_greedy(session, scenarios, meter.tick)


def _record_reference(reference: Source, scenarios: list[Scenario], progress: Progress | None) -> dict[str, Trace]:
    """Run the float64 model through all scenarios; return their traces by name."""
    session = opened(reference)
    if session.dtype != "float64":
        raise ValueError(f"the reference must compute in float64, not {session.dtype}")
    calls = 2 * len(equal_lengths(scenarios))
    meter = CallCounter(progress, "PyTorch in float64: the reference", calls)
    return record_at_once(session, scenarios, meter.tick)


def _gates_of(scenario: Scenario, own: Gates, every: Sequence[Gates], workload: Workload) -> Gates:
    """Return a scenario's gates: its own, or the widest of all scenarios where its tokens may be too few or too alike.

    The largest of few errors is a poor measure of what rounding may cost. So scenarios that are few or short, as a
    quick verification's are, share their gates. A scenario's own gate stays if it judges nothing.
    """
    few = scenario.greedy or scenario.few_draws or scenario.length < 2 * MIN_PROMPT
    if workload.has_all_sequences and not few:
        return own
    return {tensor: gate if own[tensor].judges else own[tensor] for tensor, gate in widest(every).items()}


# A cache that rounds


def _add_rounded(
    source: Source,
    cache_dtype: str,
    targets: list[Target],
    schedules: Sequence[Schedule],
    progress: Progress | None,
) -> list[Target]:
    """Record what float64 computes in each schedule, and from stored rows, with a cache of the candidate's type."""
    session = opened(source)
    if (session.dtype, session.cache_dtype) != ("float64", cache_dtype):
        raise ValueError(f"the second reference must be float64 with a cache in {cache_dtype}")
    meter = CallCounter(
        progress, f"PyTorch in float64 with a cache in {cache_dtype}", _calls(session, targets, schedules)
    )
    for schedule in schedules:
        found = record_all(session, [item.scenario for item in targets], schedule, meter.tick)
        targets = [
            replace(
                item,
                rounded={**item.rounded, schedule.name: rounded_cache.without_logits(found.pop(item.scenario.name))},
            )
            for item in targets
        ]
    return [replace(item, answers=_answers(session, item, meter)) for item in targets]


def _add_schedule_gates(
    session: Session[Any],
    targets: list[Target],
    one_shot: dict[str, Trace],
    workload: Workload,
    progress: Progress | None,
) -> list[Target]:
    """Add gates by schedule, since results depend on it if a cache rounds, and gates for sizes and answers."""
    others = [schedule for schedule in workload.schedules if not schedule.one_shot]
    scenarios = [item.scenario for item in targets]
    phase = f"PyTorch in {session.dtype} with a cache in {session.cache_dtype}: the gates"
    meter = CallCounter(progress, phase, _calls(session, targets, others))
    for schedule in workload.schedules:
        traces = one_shot if schedule.one_shot else record_all(session, scenarios, schedule, meter.tick)
        found = [
            rounded_cache.derive_cache_gates(
                session,
                traces[item.scenario.name],
                item.scenario,
                schedule,
                item.reference,
                item.rounded[schedule.name],
            )
            for item in targets
        ]
        every = [gates for gates, _ in found]
        targets = [
            replace(
                item,
                schedule_gates={**item.schedule_gates, schedule.name: _gates_of(item.scenario, gates, every, workload)},
                size_gates={**item.size_gates, schedule.name: sizes},
            )
            for item, (gates, sizes) in zip(targets, found, strict=True)
        ]
    answers = [_answers(session, item, meter) for item in targets]
    answer_gates = rounded_cache.derive_read_gates([item.answers for item in targets], answers, session.dtype)
    return [replace(item, answer_gates=answer_gates) for item in targets]


def _answers(session: Session[Any], item: Target, meter: CallCounter) -> rounded_cache.Answers:
    return rounded_cache.read_back(session, item.scenario, item.rounded[ONE_SHOT.name], meter.tick)


def _calls(session: Session[Any], targets: Sequence[Target], schedules: Sequence[Schedule]) -> int:
    groups = equal_lengths([item.scenario for item in targets])
    total = sum(schedule.calls(group[0]) for schedule in schedules for group in groups)
    return total + sum(rounded_cache.read_calls(session, item.scenario) for item in targets)
