"""Targets: what reference and baseline compute in every scenario, and the gates that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.scenarios import (
    MIN_PROMPT,
    ONE_SHOT,
    Scenario,
    Schedule,
    equal_lengths,
    greedy_prompt,
    synthetic_scenarios,
)
from lucid_deploy.parity.measure import cache_gates, given_cache, phases
from lucid_deploy.parity.measure.compare import (
    TensorId,
    Trace,
    record,
    record_at_once,
    record_at_once_together,
    record_drafting,
    record_together,
)
from lucid_deploy.parity.measure.extent import FULL, VerificationExtent
from lucid_deploy.parity.measure.gate import Gate, derive_gates, widest
from lucid_deploy.parity.measure.greedy import follow, generate
from lucid_deploy.parity.measure.progress import CallCounter, Progress
from lucid_deploy.parity.measure.source import Source, opened
from lucid_deploy.parity.measure.targets import Target, Targets
from lucid_deploy.runtimes.session import Array, Session

Recorded = list[tuple[Scenario, Trace]]


def prepare(
    baseline: Source,
    reference: Source,
    *,
    steps: int | None = None,
    seed: int = 0,
    prompt: Array | None = None,
    embeddings: Array | None = None,
    rounded: Source | None = None,
    extent: VerificationExtent = FULL,
    more: Sequence[Scenario] = (),
    progress: Progress | None = None,
) -> Targets:
    """Run baseline and reference through all scenarios, those of equal lengths as rows of one batch.

    Args:
        baseline: PyTorch in the candidate's precision, or a function that opens it. Sets the gates.
        reference: PyTorch in float64, likewise.
        steps: Decode steps after each prompt; fewer if the model's context is too short. None: as ``extent`` says.
        seed: For the scenarios.
        prompt: Token ids of a real prompt, int ``(P,)``; the reference continues it greedily.
        embeddings: ``(vocab, hidden)``, to choose correlated tokens by.
        rounded: PyTorch in float64 with its cache in the candidate's type; needed where that type rounds.
        extent: How much to run.
        more: Scenarios beside those that are made up.
        progress: Called with (what runs, session calls done, in all).

    Raises:
        LucidError: A prompt that is empty or too long, a context too short to verify, or a float64 model with NaN.
        CheckFailed: The model does not fit the precision.
        ValueError: Sessions of the wrong precision, or no ``rounded`` for a cache that rounds.
    """
    session = opened(baseline)
    extent = extent if steps is None else replace(extent, steps=steps)
    extent = extent.with_all_steps() if cache_gates.rounds(session) else extent
    scenarios = [*_scenarios(session.config, extent, seed, prompt, embeddings), *more]
    if cache_gates.rounds(session):  # before anything is computed
        cache_gates.refuse_dropped(session, max(scenario.length for scenario in scenarios))
    drafted = _draft(session, scenarios, progress)
    exact, own = _record_reference(reference, session, drafted, progress)
    gates = [derive_gates(trace, own[scenario.name], session.dtype) for scenario, trace in exact]
    items = [
        Target(scenario, trace, _gates_of(scenario, found, gates, extent))
        for (scenario, trace), found in zip(exact, gates, strict=True)
    ]
    if cache_gates.rounds(session):
        if rounded is None:
            raise ValueError(f"a cache in {session.cache_dtype} needs a float64 reference that rounds its cache, too")
        items = _add_rounded(rounded, session.cache_dtype, items, extent.schedules, progress)
        items = _add_schedules(session, items, own, extent, progress)
    return Targets(tuple(items), session.dtype, seed, cache_dtype=session.cache_dtype, extent=extent)


def _scenarios(
    config: LucidConfig, extent: VerificationExtent, seed: int, prompt: Array | None, embeddings: Array | None
) -> list[Scenario]:
    """Return all scenarios; how the greedy one goes on is not known yet."""
    name, ids, steps = greedy_prompt(config, extent.steps, seed, prompt, extent.prompt_tokens)
    made = synthetic_scenarios(config, extent.steps, seed, embeddings, extent.prompt_tokens)
    chosen = [scenario for scenario in made if extent.scenarios is None or scenario.name in extent.scenarios]
    forced = np.zeros(steps, dtype=np.int64)
    return [*chosen, Scenario(name, ids, forced, greedy=True, alone=prompt is None)]


def _draft(session: Session[Any], scenarios: list[Scenario], progress: Progress | None) -> Recorded:
    """Run the baseline; what it prefers after the greedy prompt is a draft of what the reference does."""
    groups = equal_lengths(scenarios)
    meter = CallCounter(progress, phases.baseline(session.dtype), sum(ONE_SHOT.calls(group[0]) for group in groups))
    found = [pair for group in groups for pair in record_drafting(session, group, meter.tick)]
    return _in_order(found, scenarios)


def _record_reference(
    reference: Source, baseline: Session[Any], drafted: Recorded, progress: Progress | None
) -> tuple[Recorded, dict[str, Trace]]:
    """Run the reference through all scenarios, whose greedy tokens become its own.

    Returns:
        The scenarios with what the reference computed, and what the baseline computed in each, by name.
    """
    session = opened(reference)
    if session.dtype != "float64":
        raise ValueError(f"the reference must compute in float64, not {session.dtype}")
    scenarios, own = [scenario for scenario, _ in drafted], {scenario.name: trace for scenario, trace in drafted}
    groups = equal_lengths(scenarios)
    meter = CallCounter(progress, phases.REFERENCE, 2 * len(groups))
    found: Recorded = []
    for group in groups:
        for scenario, trace in zip(group, record_at_once_together(session, group, meter.tick), strict=True):
            settled = _settled(scenario, trace, session, baseline)
            if settled is not scenario:
                trace, own[scenario.name] = record_at_once(session, settled), record(baseline, settled)
            found.append((settled, trace))
    return _in_order(found, scenarios), own


def _settled(scenario: Scenario, trace: Trace, reference: Session[Any], baseline: Session[Any]) -> Scenario:
    """Return a greedy scenario whose forced tokens are the reference's; the same object if the draft was right."""
    if not scenario.greedy:
        return scenario
    wanted = trace.tensors[max(trace.tensors)].values[0, :-1].argmax(axis=-1)  # (S,): the logits come last
    wrong = np.flatnonzero(wanted != scenario.forced)
    if not len(wrong):
        return scenario
    sure = wanted[: wrong[0] + 1]  # behind the first wrong token the reference saw a context that is not its own
    rest = follow(
        reference,
        np.concatenate([scenario.prompt, sure]),
        lambda tokens, count: generate(baseline, tokens, count),
        len(wanted) - len(sure),
    )
    return replace(scenario, forced=np.concatenate([sure, rest]))


def _in_order(found: Recorded, scenarios: Sequence[Scenario]) -> Recorded:
    by_name = {scenario.name: (scenario, trace) for scenario, trace in found}
    return [by_name[scenario.name] for scenario in scenarios]


def _gates_of(
    scenario: Scenario, own: dict[TensorId, Gate], every: Sequence[dict[TensorId, Gate]], extent: VerificationExtent
) -> dict[TensorId, Gate]:
    """Return a scenario's gates: its own, or, where it has too few draws for those, the widest of all scenarios.

    The largest of few errors is a poor measure of what rounding may cost. So scenarios that are few and short, as a
    quick verification's are, share their gates.
    """
    few = scenario.greedy or scenario.few_draws or scenario.length < 2 * MIN_PROMPT
    if extent.has_all_sequences and not few:
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
    """Record what float64 computes in each schedule with a cache of the candidate's type."""
    session = opened(source)
    if (session.dtype, session.cache_dtype) != ("float64", cache_dtype):
        raise ValueError(f"the second reference must be float64 with a cache in {cache_dtype}")
    total = sum(schedule.calls(group[0]) for schedule in schedules for group in _groups(targets))
    total += sum(given_cache.calls(session, target.scenario) for target in targets)
    meter = CallCounter(progress, phases.rounded(cache_dtype), total)
    for schedule in schedules:
        found = _recorded_together(session, targets, schedule, meter)
        targets = [
            replace(
                target,
                rounded={
                    **target.rounded,
                    schedule.name: cache_gates.without_logits(found.pop(target.scenario.name)),
                },
            )
            for target in targets
        ]
    return [replace(target, given=_answers(session, target, meter)) for target in targets]


def _answers(session: Session[Any], target: Target, meter: CallCounter) -> given_cache.Answers:
    """Go on from the rows that the second reference has stored."""
    return given_cache.answers(session, target.scenario, target.rounded[ONE_SHOT.name], meter.tick)


def _add_schedules(
    session: Session[Any],
    targets: list[Target],
    one_shot: dict[str, Trace],
    extent: VerificationExtent,
    progress: Progress | None,
) -> list[Target]:
    """Give each schedule gates of its own: with a cache that rounds, the way a prompt is fed matters."""
    schedules = extent.schedules
    others = [schedule for schedule in schedules if not schedule.one_shot]
    total = sum(schedule.calls(group[0]) for schedule in others for group in _groups(targets))
    total += sum(given_cache.calls(session, target.scenario) for target in targets)
    meter = CallCounter(progress, phases.schedules(session.dtype, session.cache_dtype), total)
    for schedule in schedules:
        traces = one_shot if schedule.one_shot else _recorded_together(session, targets, schedule, meter)
        found = [
            cache_gates.derive(
                session,
                traces[target.scenario.name],
                target.scenario,
                schedule,
                target.reference,
                target.rounded[schedule.name],
            )
            for target in targets
        ]
        gates = [own for own, _ in found]
        targets = [
            replace(
                target,
                by_schedule={**target.by_schedule, schedule.name: _gates_of(target.scenario, own, gates, extent)},
                sizes={**target.sizes, schedule.name: sizes},
            )
            for target, (own, sizes) in zip(targets, found, strict=True)
        ]
    answers = [_answers(session, target, meter) for target in targets]
    given = given_cache.derive([target.given for target in targets], answers, session.dtype)
    return [replace(target, given_gates=given) for target in targets]


def _groups(targets: Sequence[Target]) -> list[list[Scenario]]:
    return equal_lengths([target.scenario for target in targets])


def _recorded_together(
    session: Session[Any], targets: Sequence[Target], schedule: Schedule, meter: CallCounter
) -> dict[str, Trace]:
    """Run all scenarios in one schedule, as many together as go into one batch; return what was computed by name."""
    found: dict[str, Trace] = {}
    for group in _groups(targets):
        traces = record_together(session, group, schedule, meter.tick)
        found.update({scenario.name: trace for scenario, trace in zip(group, traces, strict=True)})
    return found
