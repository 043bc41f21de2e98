"""The whole verification: reference and baseline first, which gives targets, then a candidate against the targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lucid_deploy.parity.compare import Rows, TensorId, Trace, free_run, generate, record
from lucid_deploy.parity.gate import Comparison, Gate, compare_rows, derive_gates, unproven, widest
from lucid_deploy.parity.report import FreeRun, Report, ScenarioInfo, environment
from lucid_deploy.parity.scenarios import (
    DECODE_STEPS,
    MIN_PROMPT,
    ONE_SHOT,
    SCHEDULES,
    Scenario,
    Schedule,
    greedy_prompt,
    synthetic_scenarios,
)
from lucid_deploy.runtime.session import Array, Session

Progress = Callable[[str, int, int], None]
# A session, or a function that opens one: then the three models need not be in memory together.
Source = Session[Any] | Callable[[], Session[Any]]


@dataclass(frozen=True)
class Target:
    """What a candidate must compute in one scenario.

    Attributes:
        scenario: The tokens.
        reference: What the float64 model computed.
        gates: How far from it each tensor may be.
    """

    scenario: Scenario
    reference: Trace
    gates: dict[TensorId, Gate]


@dataclass(frozen=True)
class Targets:
    """All targets of one model in one precision; they serve any number of candidates.

    Attributes:
        items: One for each scenario.
        dtype: The precision that the gates were derived for.
        seed: The scenarios' seed.
    """

    items: tuple[Target, ...]
    dtype: str
    seed: int


def verify(
    candidate: Source,
    baseline: Source,
    reference: Source,
    *,
    steps: int = DECODE_STEPS,
    seed: int = 0,
    prompt: Array | None = None,
    embeddings: Array | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check that a candidate computes what PyTorch computes.

    Args:
        candidate: The session under test, or a function that opens it.
        baseline: PyTorch in the candidate's precision; sets the gates.
        reference: PyTorch in float64.
        steps: Teacher-forced decode steps after each prompt; fewer if the model's context is too short.
        seed: For the scenarios' tokens.
        prompt: Token ids of a real prompt, int ``(P,)``; the reference continues it greedily.
        embeddings: ``(vocab, hidden)``, to choose correlated tokens by.
        progress: Called with (what runs, session calls done, in all).

    Returns:
        The report; a failed gate is a result in it, not an exception.

    Raises:
        LucidError: A prompt that is empty or too long, a context too short to verify, or a float64 model with NaN.
        CheckFailed: The model does not fit the precision, or the candidate's tensors have wrong shapes.
        ValueError: Sessions of the wrong precision.
    """
    targets = prepare(
        baseline, reference, steps=steps, seed=seed, prompt=prompt, embeddings=embeddings, progress=progress
    )
    return check(candidate, targets, progress=progress)


def prepare(
    baseline: Source,
    reference: Source,
    *,
    steps: int = DECODE_STEPS,
    seed: int = 0,
    prompt: Array | None = None,
    embeddings: Array | None = None,
    progress: Progress | None = None,
) -> Targets:
    """Run reference and baseline through all scenarios; arguments and errors as :func:`verify`."""
    progress = progress or _silent
    recorded = _record_reference(reference, steps, seed, prompt, embeddings, progress)
    session = _opened(baseline)
    meter = _Meter(progress, f"PyTorch {session.dtype}", sum(ONE_SHOT.calls(scenario) for scenario, _ in recorded))
    gates = [
        derive_gates(trace, record(session, scenario, tick=meter.tick), session.dtype) for scenario, trace in recorded
    ]
    items = [
        Target(scenario, trace, widest(gates) if scenario.greedy or scenario.length < 2 * MIN_PROMPT else own)
        for (scenario, trace), own in zip(recorded, gates, strict=True)
    ]
    return Targets(tuple(items), session.dtype, seed)


def check(
    candidate: Source,
    targets: Targets,
    *,
    schedules: Sequence[Schedule] = SCHEDULES,
    progress: Progress | None = None,
) -> Report:
    """Run a candidate through all scenarios and schedules, and freely; arguments and errors as :func:`verify`."""
    session = _opened(candidate)
    if session.dtype != targets.dtype:
        raise ValueError(f"the gates were derived for {targets.dtype}, the candidate computes in {session.dtype}")
    scenarios = [target.scenario for target in targets.items]
    total = sum(schedule.calls(scenario) for scenario in scenarios for schedule in schedules)
    total += sum(1 + len(scenario.forced) for scenario in scenarios if scenario.greedy)
    meter = _Meter(progress or _silent, f"{session.runtime} {session.dtype}", total)
    comparisons: list[Comparison] = []
    free_runs: list[FreeRun] = []
    for target in targets.items:
        for schedule in schedules:
            comparisons += _compare(session, target, schedule, meter)
        if target.scenario.greedy:
            comparison, run = _compare_free_run(session, target, meter)
            comparisons.append(comparison)
            free_runs.append(run)
    return Report(
        runtime=session.runtime,
        dtype=session.dtype,
        seed=targets.seed,
        scenarios=tuple(ScenarioInfo(s.name, len(s.prompt), len(s.forced)) for s in scenarios),
        comparisons=tuple(comparisons),
        free_runs=tuple(free_runs),
        unproven=tuple(unproven(target.gates for target in targets.items)),
        environment=environment(session.runtime),
    )


def _record_reference(
    reference: Source, steps: int, seed: int, prompt: Array | None, embeddings: Array | None, progress: Progress
) -> list[tuple[Scenario, Trace]]:
    session = _opened(reference)
    if session.dtype != "float64":
        raise ValueError(f"the reference must compute in float64, not {session.dtype}")
    name, ids, greedy_steps = greedy_prompt(session.config, steps, seed, prompt)
    scenarios = synthetic_scenarios(session.config, steps, seed, embeddings)
    calls = sum(ONE_SHOT.calls(scenario) for scenario in scenarios) + 1 + 2 * greedy_steps
    meter = _Meter(progress, "PyTorch float64", calls)
    scenarios.append(Scenario(name, ids, generate(session, ids, greedy_steps, meter.tick), greedy=True))
    return [(scenario, record(session, scenario, tick=meter.tick)) for scenario in scenarios]


def _compare(session: Session[Any], target: Target, schedule: Schedule, meter: _Meter) -> list[Comparison]:
    trace = record(session, target.scenario, schedule, meter.tick)
    return [
        compare_rows(trace.tensors[tensor], rows, tensor, target.gates[tensor], target.scenario.name, schedule.name)
        for tensor, rows in target.reference.tensors.items()
    ]


def _compare_free_run(session: Session[Any], target: Target, meter: _Meter) -> tuple[Comparison, FreeRun]:
    """Compare the logits as long as the tokens are the reference's, the step that leaves them included."""
    actual = free_run(session, target.scenario, meter.tick)
    tensor = max(target.reference.tensors)  # the logits come last
    wanted = target.reference.tensors[tensor]
    count = actual.values.shape[1]
    shared = Rows(wanted.values[:, :count], wanted.start)
    comparison = compare_rows(actual, shared, tensor, target.gates[tensor], target.scenario.name, "free-running")
    return comparison, FreeRun(target.scenario.name, len(target.scenario.forced), count - 1)


def _opened(source: Source) -> Session[Any]:
    return source if isinstance(source, Session) else source()


class _Meter:
    """Counts session calls for a progress bar."""

    def __init__(self, progress: Progress, what: str, total: int) -> None:
        self._progress, self._what, self._total, self._done = progress, what, total, 0

    def tick(self) -> None:
        self._done += 1
        self._progress(self._what, self._done, self._total)


def _silent(what: str, done: int, total: int) -> None:
    pass
