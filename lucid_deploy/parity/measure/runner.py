"""The whole verification: reference and baseline first, which gives targets, then a candidate against the targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.scenarios import (
    DECODE_STEPS,
    MIN_PROMPT,
    ONE_SHOT,
    SCHEDULES,
    Scenario,
    Schedule,
    batches,
    greedy_prompt,
    synthetic_scenarios,
)
from lucid_deploy.parity.causes.solve_analysis import HeadStats, head_stats
from lucid_deploy.parity.measure import cache_gates
from lucid_deploy.parity.measure.compare import (
    KINDS,
    Rows,
    TensorId,
    Trace,
    follow,
    free_run,
    generate,
    record,
    record_at_once,
    record_together,
)
from lucid_deploy.parity.measure.gate import Comparison, compare_rows, derive_gates, unproven, widest
from lucid_deploy.parity.measure.progress import Meter, Progress
from lucid_deploy.parity.measure.targets import Target, Targets, explained_scenarios
from lucid_deploy.parity.show.report import FreeRun, Report, ScenarioInfo, environment
from lucid_deploy.runtimes.session import Array, Session

# A session, or a function that opens one: then the three models need not be in memory together.
Source = Session[Any] | Callable[[], Session[Any]]


def verify(
    candidate: Source,
    baseline: Source,
    reference: Source,
    *,
    steps: int = DECODE_STEPS,
    seed: int = 0,
    prompt: Array | None = None,
    embeddings: Array | None = None,
    rounded: Source | None = None,
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
        rounded: PyTorch in float64 with its cache in the candidate's type; needed where that type rounds.
        progress: Called with (what runs, session calls done, in all).

    Returns:
        The report; a failed gate is a result in it, not an exception.

    Raises:
        LucidError: A prompt that is empty or too long, a context too short to verify, or a float64 model with NaN.
        CheckFailed: The model does not fit the precision, or the candidate's tensors have wrong shapes.
        ValueError: Sessions of the wrong precision, or no ``rounded`` for a cache that rounds.
    """
    targets = prepare(
        baseline,
        reference,
        steps=steps,
        seed=seed,
        prompt=prompt,
        embeddings=embeddings,
        rounded=rounded,
        progress=progress,
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
    rounded: Source | None = None,
    progress: Progress | None = None,
) -> Targets:
    """Run reference and baseline through all scenarios; arguments and errors as :func:`verify`."""
    session = _opened(baseline)
    recorded = _record_reference(reference, session, steps, seed, prompt, embeddings, progress)
    meter = Meter(progress, f"PyTorch {session.dtype}", sum(ONE_SHOT.calls(scenario) for scenario, _ in recorded))
    gates = [
        derive_gates(trace, record(session, scenario, tick=meter.tick), session.dtype) for scenario, trace in recorded
    ]
    items = [
        Target(scenario, trace, widest(gates) if _few_draws(scenario) else own)
        for (scenario, trace), own in zip(recorded, gates, strict=True)
    ]
    if cache_gates.rounds(session):
        if rounded is None:
            raise ValueError(f"a cache in {session.cache_dtype} needs a float64 reference that rounds its cache, too")
        items = _add_schedules(session, _add_rounded(rounded, session.cache_dtype, items, progress), progress)
    return Targets(tuple(items), session.dtype, seed, cache_dtype=session.cache_dtype)


def _few_draws(scenario: Scenario) -> bool:
    """Whether a scenario may be too short for gates of its own."""
    return scenario.greedy or scenario.length < 2 * MIN_PROMPT


def _add_rounded(source: Source, cache_dtype: str, targets: list[Target], progress: Progress | None) -> list[Target]:
    """Record what float64 computes in each schedule with a cache of the candidate's type."""
    session = _opened(source)
    if (session.dtype, session.cache_dtype) != ("float64", cache_dtype):
        raise ValueError(f"the second reference must be float64 with a cache in {cache_dtype}")
    meter = Meter(progress, f"PyTorch float64, {cache_dtype} cache", _calls(targets, SCHEDULES))
    for schedule in SCHEDULES:
        targets = [
            replace(target, rounded={**target.rounded, schedule.name: cache_gates.without_logits(trace)})
            for target, trace in _recorded(session, targets, schedule, meter)
        ]
    return targets


def _add_schedules(session: Session[Any], targets: list[Target], progress: Progress | None) -> list[Target]:
    """Give each schedule gates of its own: with a cache that rounds, the way a prompt is fed matters."""
    meter = Meter(progress, f"PyTorch {session.dtype}, {session.cache_dtype} cache", _calls(targets, SCHEDULES))
    for schedule in SCHEDULES:
        found = [
            cache_gates.derive(
                session, trace, target.scenario, schedule, target.reference, target.rounded[schedule.name]
            )
            for target, trace in _recorded(session, targets, schedule, meter)
        ]
        gates = [own for own, _ in found]
        targets = [
            replace(
                target,
                by_schedule={
                    **target.by_schedule,
                    schedule.name: widest(gates) if _few_draws(target.scenario) else own,
                },
                sizes={**target.sizes, schedule.name: sizes},
            )
            for target, (own, sizes) in zip(targets, found, strict=True)
        ]
    return targets


def _recorded(
    session: Session[Any], targets: Sequence[Target], schedule: Schedule, meter: Meter
) -> Iterator[tuple[Target, Trace]]:
    """Run all scenarios in one schedule, some together; yield every target, in their order, with what was computed."""
    scenarios, traces = [target.scenario for target in targets], {}
    for batch in batches(scenarios, schedule, session.batch_limit):
        found = record_together(session, batch, schedule, meter.tick)
        traces.update({scenario.name: trace for scenario, trace in zip(batch, found, strict=True)})
    for target in targets:
        yield target, traces.pop(target.scenario.name)


def _calls(targets: Sequence[Target], schedules: Sequence[Schedule], limit: int | None = None) -> int:
    """Return how often :func:`_recorded` calls a session in all these schedules."""
    scenarios = [target.scenario for target in targets]
    return sum(schedule.calls(group[0]) for schedule in schedules for group in batches(scenarios, schedule, limit))


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
    if session.cache_dtype != (targets.cache_dtype or targets.dtype):
        raise ValueError(
            f"the gates are for a cache in {targets.cache_dtype}, the candidate's is {session.cache_dtype}"
        )
    scenarios = [target.scenario for target in targets.items]
    total = _calls(targets.items, schedules, session.batch_limit)
    total += sum(1 + len(scenario.forced) for scenario in scenarios if scenario.greedy)
    meter = Meter(progress, f"{session.runtime} {session.dtype}", total)
    found: dict[str, list[Comparison]] = {scenario.name: [] for scenario in scenarios}
    free_runs: list[FreeRun] = []
    for schedule in schedules:
        for target, trace in _recorded(session, targets.items, schedule, meter):
            found[target.scenario.name] += _compare(trace, target, schedule)
    for target in targets.items:
        if target.scenario.greedy:
            comparison, run = _compare_free_run(session, target, meter)
            found[target.scenario.name].append(comparison)
            free_runs.append(run)
    return Report(
        runtime=session.runtime,
        dtype=session.dtype,
        seed=targets.seed,
        scenarios=tuple(ScenarioInfo(s.name, len(s.prompt), len(s.forced)) for s in scenarios),
        comparisons=tuple(comparison for items in found.values() for comparison in items),
        free_runs=tuple(free_runs),
        unproven=tuple(unproven(target.gates for target in targets.items)) or _unproven_schedules(targets),
        environment=environment(session.capabilities.packages),
        label=session.label,
        runs_graphs=session.capabilities.runs_graphs,
        plainer=session.plainer,
        heads=tuple(conditioning(targets, session.config, [layer.solves for layer in session.layers])),
        tolerance=targets.tolerance,
    )


def conditioning(targets: Targets, config: LucidConfig, solves: Sequence[bool]) -> Iterator[HeadStats]:
    """Measure every head's preconditioner on the reference's keys, in the scenarios worth a closer look."""
    for target in explained_scenarios(targets):
        for tensor, rows in target.reference.tensors.items():
            if KINDS[tensor.kind] == "K" and solves[tensor.layer]:
                keys = rows.values[0].reshape(-1, config.num_key_value_heads, config.head_dim).swapaxes(0, 1)
                yield from head_stats(target.scenario.name, tensor.layer, keys, config.rms_norm_eps)


def _record_reference(
    reference: Source,
    baseline: Session[Any],
    steps: int,
    seed: int,
    prompt: Array | None,
    embeddings: Array | None,
    progress: Progress | None,
) -> list[tuple[Scenario, Trace]]:
    """Run the reference through all scenarios; what it would generate is drafted by the baseline, to save calls."""
    session = _opened(reference)
    if session.dtype != "float64":
        raise ValueError(f"the reference must compute in float64, not {session.dtype}")
    name, ids, greedy_steps = greedy_prompt(session.config, steps, seed, prompt)
    scenarios = synthetic_scenarios(session.config, steps, seed, embeddings)
    drafting = Meter(progress, f"PyTorch {baseline.dtype}, greedy", greedy_steps)
    meter = Meter(progress, "PyTorch float64", len(scenarios) + 2)
    ticks = iter([drafting.tick])  # of the first draft alone: how many follow is not known

    def draft(tokens: Array, count: int) -> Array:
        return generate(baseline, tokens, count, next(ticks, None))

    chosen = follow(session, ids, draft, greedy_steps)
    meter.tick()
    scenarios.append(Scenario(name, ids, chosen, greedy=True))
    recorded = []
    for scenario in scenarios:
        recorded.append((scenario, record_at_once(session, scenario)))
        meter.tick()
    return recorded


def _compare(trace: Trace, target: Target, schedule: Schedule) -> list[Comparison]:
    name, gates = target.scenario.name, target.by_schedule.get(schedule.name, target.gates)
    found = [
        compare_rows(trace.tensors[tensor], rows, tensor, gates[tensor], name, schedule.name)
        for tensor, rows in target.reference.tensors.items()
    ]
    if schedule.name in target.sizes:
        sizes, rounded = target.sizes[schedule.name], target.rounded[schedule.name]
        found += cache_gates.compare_sizes(trace, rounded, sizes, target.scenario, schedule)
    return found


def _unproven_schedules(targets: Targets) -> tuple[TensorId, ...]:
    """Return the tensors whose gates are vacuous in all scenarios of a schedule that has gates of its own."""
    names = dict.fromkeys(name for target in targets.items for name in target.by_schedule)
    found = [unproven(target.by_schedule[name] for target in targets.items) for name in names]
    return tuple(sorted({tensor for tensors in found for tensor in tensors}))


def _compare_free_run(session: Session[Any], target: Target, meter: Meter) -> tuple[Comparison, FreeRun]:
    """Compare the logits as long as the tokens are the reference's, the step that leaves them included."""
    actual = free_run(session, target.scenario, meter.tick)
    tensor = max(target.reference.tensors)  # the logits come last
    wanted = target.reference.tensors[tensor]
    count = actual.values.shape[1]
    shared = Rows(wanted.values[:, :count], wanted.start)
    comparison = compare_rows(actual, shared, tensor, target.gates[tensor], target.scenario.name, "free-running")
    return comparison, FreeRun(target.scenario.name, len(target.scenario.forced), count - 1)


def _opened(source: Source) -> Session[Any]:
    return source() if callable(source) else source
