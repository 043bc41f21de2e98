"""Run a candidate against its targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lucid_deploy.model.scenarios import ONE_SHOT, Scenario, Schedule, batches
from lucid_deploy.parity.measure import cache_gates, given_cache, phases
from lucid_deploy.parity.measure.compare import TensorRows, Trace, record, record_together
from lucid_deploy.parity.measure.coverage import FREE_RUNNING, unproven
from lucid_deploy.parity.measure.gate import Comparison, compare_rows
from lucid_deploy.parity.measure.greedy import free_run
from lucid_deploy.parity.measure.measurement import FreeRun, Measurement, ScenarioInfo
from lucid_deploy.parity.measure.progress import CallCounter, Progress
from lucid_deploy.parity.measure.source import Source, opened
from lucid_deploy.parity.measure.targets import Target, Targets
from lucid_deploy.runtimes.session import Session


def measure(
    candidate: Source,
    targets: Targets,
    *,
    schedules: Sequence[Schedule] | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Run a candidate through all scenarios and schedules, and freely.

    Args:
        candidate: The session under test, or a function that opens it.
        targets: What it is held against.
        schedules: How to feed the prompts; None: as the targets' extent says.
        progress: Called with (what runs, session calls done, in all).

    Returns:
        What was found; a failed gate is a result in it, not an exception.

    Raises:
        CheckFailed: The candidate's tensors have wrong shapes.
        ValueError: A session of another precision than the targets'.
    """
    session = opened(candidate)
    _check_precision(session, targets)
    schedules = targets.extent.schedules if schedules is None else schedules
    scenarios = [target.scenario for target in targets.items]
    total = _calls(scenarios, schedules, session.batch_limit)
    one_shot = any(schedule.one_shot for schedule in schedules)
    alone = [] if one_shot else [scenario for scenario in scenarios if scenario.greedy]
    total += sum(map(ONE_SHOT.calls, alone))
    total += sum(given_cache.calls(session, target.scenario) for target in targets.items if target.given)
    meter = CallCounter(progress, phases.candidate(session.runtime, session.dtype), total)
    found: dict[str, list[Comparison]] = {scenario.name: [] for scenario in scenarios}
    free_runs: list[FreeRun] = []
    forced: dict[str, TensorRows] = {}  # logits of the scenarios that the reference continued, one-shot
    for schedule in schedules:
        for target, trace in _recorded(session, targets.items, schedule, meter):
            found[target.scenario.name] += _compare(trace, target, schedule)
            if schedule.one_shot and target.scenario.greedy:
                forced[target.scenario.name] = _logits(trace)
    forced |= {scenario.name: _logits(record(session, scenario, tick=meter.tick)) for scenario in alone}
    for target in targets.items:
        if target.given:
            answers = given_cache.answers(session, target.scenario, target.rounded[ONE_SHOT.name], meter.tick)
            found[target.scenario.name] += given_cache.compare(
                answers, target.given, target.given_gates, target.scenario
            )
        if target.scenario.greedy:
            comparison, run = _compare_free_run(forced[target.scenario.name], target)
            found[target.scenario.name].append(comparison)
            free_runs.append(run)
    comparisons = tuple(comparison for items in found.values() for comparison in items)
    return Measurement(
        runtime=session.runtime,
        dtype=session.dtype,
        seed=targets.seed,
        scenarios=tuple(ScenarioInfo(s.name, len(s.prompt), len(s.forced)) for s in scenarios),
        comparisons=comparisons,
        free_runs=tuple(free_runs),
        unproven=unproven(comparisons),
        label=session.label,
        context=session.config.max_position_embeddings,
        tolerance=targets.tolerance,
        left_out=tuple(targets.extent.left_out()),
        runs_graphs=session.capabilities.runs_graphs,
        plainer=session.fallback_hint,
        outside=tuple(dict.fromkeys(item.reference for target in targets.items for item in target.outside)),
        rounded_cache=session.cache_dtype if session.cache_dtype != session.dtype else None,
        rounded_inputs=session.rounded_inputs,
    )


def _check_precision(session: Session[Any], targets: Targets) -> None:
    if session.dtype != targets.dtype:
        raise ValueError(f"the gates were derived for {targets.dtype}, the candidate computes in {session.dtype}")
    if session.cache_dtype != (targets.cache_dtype or targets.dtype):
        raise ValueError(
            f"the gates are for a cache in {targets.cache_dtype}, the candidate's is {session.cache_dtype}"
        )


def _recorded(
    session: Session[Any], targets: Sequence[Target], schedule: Schedule, meter: CallCounter
) -> Iterator[tuple[Target, Trace]]:
    """Run all scenarios in one schedule, some together; yield every target, in their order, with what was computed."""
    traces: dict[str, Trace] = {}
    for batch in batches([target.scenario for target in targets], schedule, session.batch_limit):
        found = record_together(session, batch, schedule, meter.tick)
        traces.update({scenario.name: trace for scenario, trace in zip(batch, found, strict=True)})
    for target in targets:
        if target.scenario.name in traces:
            yield target, traces.pop(target.scenario.name)


def _calls(scenarios: Sequence[Scenario], schedules: Sequence[Schedule], limit: int | None) -> int:
    """Return how often :func:`_recorded` calls a session in all these schedules."""
    groups = ((way, group) for way in schedules for group in batches(scenarios, way, limit))
    return sum(schedule.calls(group[0]) for schedule, group in groups)


def _compare(trace: Trace, target: Target, schedule: Schedule) -> list[Comparison]:
    name, gates = target.scenario.name, target.by_schedule.get(schedule.name, target.gates)
    found = [
        compare_rows(
            trace.tensors[tensor],
            # Where fewer tokens are decoded, logits begin later.
            rows.from_position(trace.tensors[tensor].start) if tensor.is_logits else rows,
            tensor,
            gates[tensor],
            name,
            schedule.name,
        )
        for tensor, rows in target.reference.tensors.items()
    ]
    if schedule.name in target.sizes:
        sizes, rounded = target.sizes[schedule.name], target.rounded[schedule.name]
        found += cache_gates.compare_sizes(trace, rounded, sizes, target.scenario, schedule)
    for outside in target.outside:
        found += outside.compare(trace, gates, name, schedule.name)
    return found


def _logits(trace: Trace) -> TensorRows:
    return trace.tensors[max(trace.tensors)]  # they come last


def _compare_free_run(forced: TensorRows, target: Target) -> tuple[Comparison, FreeRun]:
    """Compare the logits up to and including the first step whose token is not the reference's."""
    actual = free_run(forced, target.scenario)
    tensor = max(target.reference.tensors)  # the logits come last
    wanted = target.reference.tensors[tensor]
    count = actual.values.shape[1]
    shared = TensorRows(wanted.values[:, :count], wanted.start)
    comparison = compare_rows(actual, shared, tensor, target.gates[tensor], target.scenario.name, FREE_RUNNING)
    return comparison, FreeRun(target.scenario.name, len(target.scenario.forced), count - 1)
