"""Derive the further traces and gates that a target needs if the cache rounds (see :mod:`.rounded_cache`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lucid_deploy.parity.gate import Comparison, Gates, compare_rows, share_gates
from lucid_deploy.parity.progress import CallCounter, Progress, Tick
from lucid_deploy.parity.record import TensorRows, Trace, record_all
from lucid_deploy.parity.rounded_cache import (
    Answers,
    SizeGates,
    derive_cache_gates,
    derive_read_gates,
    read_back,
    read_calls,
    size_factors,
    without_logits,
)
from lucid_deploy.parity.scenarios import ONE_SHOT, Scenario, Schedule, Workload, equal_lengths
from lucid_deploy.runtimes.session import Session


@dataclass(frozen=True)
class Rounding:
    """What one scenario also needs if the cache rounds: traces of such a cache, and gates; see ``derive_roundings``."""

    scenario: Scenario
    rounded: dict[str, Trace] = field(default_factory=dict)  # by schedule: K, Y, states in float64, the cache rounded
    gates: dict[str, Gates] = field(default_factory=dict)  # by schedule; these replace the target's gates
    sizes: dict[str, SizeGates] = field(default_factory=dict)  # by schedule: how far from 1 the size factors may be
    answers: Answers = field(default_factory=dict)  # by graph: float64 logits computed from stored rows
    answer_gates: dict[str, Gates] = field(default_factory=dict)  # by graph: gates of a candidate's logits

    def compare_sizes(self, trace: Trace, schedule: Schedule) -> list[Comparison]:
        """Compare the size factors of K and Y with 1; a factor covers many rows and is reported at the first one."""
        rounded, found = self.rounded[schedule.name], []
        for part, gates in self.sizes[schedule.name].items():
            for tensor, size in gates.items():
                rows, first = size.rows, int(size.rows[0])
                factors = size_factors(trace.tensors[tensor].values[:, rows], rounded.tensors[tensor].values[:, rows])
                one, measured = (TensorRows(x, first) for x in (np.ones((1, 1, 1)), factors[:, None, None]))
                name = f"{schedule.name}, size of {part} rows"
                found.append(compare_rows(measured, one, tensor, size.gate, self.scenario.name, name))
        return found

    def read_back(self, session: Session[Any], tick: Tick) -> Answers:
        """Run a session from the cached rows of the float64 run; return its logits."""
        return read_back(session, self.scenario, self.rounded[ONE_SHOT.name], tick)

    def compare_answers(self, found: Answers) -> list[Comparison]:
        """Compare the logits that a candidate computed from these rows with the float64 logits."""
        name, gates = self.scenario.name, self.answer_gates
        return [
            compare_rows(found[way].tensors[tensor], rows, tensor, gates[way][tensor], name, way)
            for way, trace in self.answers.items()
            for tensor, rows in trace.tensors.items()
        ]


def derive_roundings(
    baseline: Session[Any],
    rounded: Session[Any],
    own: Mapping[str, Trace],
    exact: Mapping[str, Trace],
    scenarios: Sequence[Scenario],
    workload: Workload,
    progress: Progress | None,
) -> list[Rounding]:
    """Run the baseline and ``rounded`` (float64 with a cache that rounds) in each schedule and from stored rows.

    ``own`` and ``exact`` are existing one-shot traces by scenario: the baseline's, and those of float64 without
    rounding. Raises ValueError if ``rounded`` is not a float64 session with the baseline's cache dtype.
    """
    if (rounded.dtype, rounded.cache_dtype) != ("float64", baseline.cache_dtype):
        raise ValueError(f"the second reference must be float64 with a cache in {baseline.cache_dtype}")
    items = [Rounding(scenario) for scenario in scenarios]
    _record_rounded(rounded, items, workload.schedules, progress)
    others = [schedule for schedule in workload.schedules if not schedule.one_shot]
    phase = f"PyTorch in {baseline.dtype} with a cache in {baseline.cache_dtype}: the gates"
    meter = CallCounter(progress, phase, _calls(baseline, scenarios, others))
    for schedule in workload.schedules:
        way, found = schedule.name, []
        traces = own if schedule.one_shot else record_all(baseline, scenarios, schedule, meter.tick)
        for item in items:
            trace, wanted = traces[item.scenario.name], exact[item.scenario.name]
            gates, item.sizes[way] = derive_cache_gates(
                baseline, trace, item.scenario, schedule, wanted, item.rounded[way]
            )
            found.append(gates)
        for item, gates in zip(items, share_gates(scenarios, found, workload), strict=True):
            item.gates[way] = gates
    answers = [item.read_back(baseline, meter.tick) for item in items]
    answer_gates = derive_read_gates([item.answers for item in items], answers, baseline.dtype)
    for item in items:
        item.answer_gates.update(answer_gates)
    return items


def _record_rounded(
    session: Session[Any], items: Sequence[Rounding], schedules: Sequence[Schedule], progress: Progress | None
) -> None:
    """Record what float64 with a cache that rounds computes in each schedule and from stored rows."""
    scenarios = [item.scenario for item in items]
    phase = f"PyTorch in float64 with a cache in {session.cache_dtype}"
    meter = CallCounter(progress, phase, _calls(session, scenarios, schedules))
    for schedule in schedules:
        found = record_all(session, scenarios, schedule, meter.tick)
        for item in items:
            item.rounded[schedule.name] = without_logits(found.pop(item.scenario.name))
    for item in items:
        item.answers.update(item.read_back(session, meter.tick))


def _calls(session: Session[Any], scenarios: Sequence[Scenario], schedules: Sequence[Schedule]) -> int:
    total = sum(schedule.calls(group[0]) for schedule in schedules for group in equal_lengths(scenarios))
    return total + sum(read_calls(session, scenario) for scenario in scenarios)
