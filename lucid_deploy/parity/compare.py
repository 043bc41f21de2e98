"""Run a candidate session over its targets' scenarios and compare what it computes with the targets."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lucid_deploy.parity.gate import Comparison, compare_rows
from lucid_deploy.parity.progress import CallCounter, Progress
from lucid_deploy.parity.record import TensorRows, Trace, record_together
from lucid_deploy.parity.results import FreeRun, ScenarioInfo, Verification
from lucid_deploy.parity.rounded_cache import read_calls
from lucid_deploy.parity.scenarios import FREE_RUNNING, Schedule, batches
from lucid_deploy.parity.targets import Target, Targets
from lucid_deploy.runtimes.session import Session
from lucid_deploy.version import __version__

_distributions = functools.cache(importlib.metadata.packages_distributions)  # slow: reads every package's file list


def check(session: Session[Any], targets: Targets, *, progress: Progress | None = None) -> Verification:
    """Run a session over every scenario in every schedule; compare what it computes with the targets.

    A failed gate is part of the result, not an exception.

    Raises:
        ValueError: The session's dtype or cache dtype is not the one that the targets were derived for.
        CheckFailed: The session's cache has the wrong shape or number of tokens.
    """
    _check_precision(session, targets)
    no_drafts = session.multi_token_unsupported_reason or ""
    schedules = [schedule for schedule in targets.workload.schedules if not (no_drafts and schedule.drafts)]
    scenarios = [target.scenario for target in targets.items]
    comparisons, free_runs = _run(session, targets, schedules, progress)
    return Verification(
        comparisons=tuple(comparisons),
        runtime=session.runtime,
        label=session.label,
        dtype=session.dtype,
        seed=targets.seed,
        scenarios=tuple(ScenarioInfo(s.name, len(s.prompt), len(s.forced)) for s in scenarios),
        free_runs=tuple(free_runs),
        context=session.config.max_position_embeddings,
        left_out=tuple(targets.workload.left_out()),
        no_drafts=no_drafts,
        others=tuple(dict.fromkeys(target.other.reference for target in targets.items if target.other is not None)),
        runs_graphs=session.capabilities.runs_graphs,
        fallback_hint=session.fallback_hint,
        rounded_cache=session.cache_dtype if session.cache_dtype != session.dtype else None,
        rounded_inputs=session.rounded_inputs,
        environment=_environment(session.capabilities.packages),
    )


def _check_precision(session: Session[Any], targets: Targets) -> None:
    if session.dtype != targets.dtype:
        raise ValueError(f"the gates were derived for {targets.dtype}, the candidate computes in {session.dtype}")
    if session.cache_dtype != (targets.cache_dtype or targets.dtype):
        raise ValueError(
            f"the gates are for a cache in {targets.cache_dtype}, the candidate's is {session.cache_dtype}"
        )


def _run(
    session: Session[Any], targets: Targets, schedules: Sequence[Schedule], progress: Progress | None
) -> tuple[list[Comparison], list[FreeRun]]:
    """Return all comparisons, grouped by scenario, and the free runs of the greedy scenarios."""
    by_name = {target.scenario.name: target for target in targets.items}
    scenarios = [target.scenario for target in targets.items]
    groups = [(way, group) for way in schedules for group in batches(scenarios, way, session.batch_limit)]
    total = sum(schedule.calls(group[0]) for schedule, group in groups)
    total += sum(read_calls(session, target.scenario) for target in targets.items if target.rounding)
    meter = CallCounter(progress, f"{session.runtime} in {session.dtype}: what is verified", total)
    found: dict[str, list[Comparison]] = {scenario.name: [] for scenario in scenarios}
    forced: dict[str, TensorRows] = {}  # one-shot logits of the greedy scenarios
    for schedule, group in groups:
        for name, trace in record_together(session, group, schedule, meter.tick).items():
            found[name] += _compare(trace, by_name[name], schedule)
            if schedule.one_shot and by_name[name].scenario.greedy:
                forced[name] = trace.logits
    free_runs = []
    for target in targets.items:
        if target.rounding:
            answers = target.rounding.read_back(session, meter.tick)
            found[target.scenario.name] += target.rounding.compare_answers(answers)
        if target.scenario.greedy:
            comparison, run = _compare_free_run(forced[target.scenario.name], target)
            found[target.scenario.name].append(comparison)
            free_runs.append(run)
    return [comparison for items in found.values() for comparison in items], free_runs


def _compare(trace: Trace, target: Target, schedule: Schedule) -> list[Comparison]:
    name, gates = target.scenario.name, target.rounding.gates[schedule.name] if target.rounding else target.gates
    found = [
        compare_rows(
            trace.tensors[tensor],
            # Logits start later in schedules that decode fewer tokens.
            rows.from_position(trace.tensors[tensor].start) if tensor.is_logits else rows,
            tensor,
            gates[tensor],
            name,
            schedule.name,
        )
        for tensor, rows in target.reference.tensors.items()
    ]
    if target.rounding:
        found += target.rounding.compare_sizes(trace, schedule)
    if target.other is not None:
        found += target.other.compare(trace, gates, name, schedule.name)
    return found


def _compare_free_run(forced: TensorRows, target: Target) -> tuple[Comparison, FreeRun]:
    """Compare the logits of a free run, up to and including the first step whose token is not PyTorch's.

    After that step the contexts differ and nothing can be compared. Until then, a run with forced tokens and a free
    run make the same calls with the same inputs, so the forced run's logits are used.
    """
    scenario, wanted = target.scenario, target.reference.logits
    differs = np.append(forced.values[0, :-1].argmax(axis=-1) != scenario.forced, True)  # (S + 1,)
    count = int(differs.argmax()) + 1
    actual = replace(forced, values=forced.values[:, :count])
    tensor = max(target.reference.tensors)  # the logits come last
    rows = TensorRows(wanted.values[:, :count], wanted.start)
    comparison = compare_rows(actual, rows, tensor, target.gates[tensor], scenario.name, FREE_RUNNING)
    return comparison, FreeRun(scenario.name, len(scenario.forced), count - 1)


def _environment(packages: Sequence[str]) -> dict[str, Any]:
    """Describe the machine and the versions of packages (import names), which are not imported for this."""
    versions = {"lucid-deploy": __version__, "python": platform.python_version()}
    installed = _distributions()
    for package in ("numpy", "torch", *packages):
        versions.update({name: importlib.metadata.version(name) for name in installed.get(package, ())})
    machine = {"system": platform.platform(), "processor": platform.machine(), "cpus": os.cpu_count()}
    return {"versions": versions, "machine": machine}
