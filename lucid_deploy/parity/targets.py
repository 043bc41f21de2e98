"""What a candidate is compared with: references, their numbers and the gates, scenario by scenario."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lucid_deploy.errors import LucidError
from lucid_deploy.model.scenarios import CORRELATED, Scenario
from lucid_deploy.parity.gate import FACTOR, UNIT, Comparison, Gate, compare_rows
from lucid_deploy.parity.metrics import position_errors
from lucid_deploy.parity.options import FULL, Workload, check_tolerance
from lucid_deploy.parity.record import TensorId, TensorRows, Trace
from lucid_deploy.parity.rounded_cache import Answers, Gates, SizeGates
from lucid_deploy.runtimes.session import Session

Source = Session[Any] | Callable[[], Session[Any]]  # a session, or what opens one when it is needed
Progress = Callable[[str, int, int], None]  # called with the phase, calls done, and calls in all


def opened(source: Source) -> Session[Any]:
    """Return the session, opened if need be."""
    return source() if callable(source) else source


class CallCounter:
    """Counts the calls of one phase for a progress bar, from 0 before the first one."""

    def __init__(self, progress: Progress | None, phase: str, total: int) -> None:
        self._progress, self._phase, self._total, self._done = progress, phase, total, -1
        self.tick()

    def tick(self) -> None:
        """One more call is done."""
        self._done += 1
        if self._progress is not None:
            self._progress(self._phase, self._done, self._total)


@dataclass(frozen=True)
class Reference:
    """What a candidate is compared with.

    Attributes:
        kind: Short name, for programs: ``own model``.
        words: For people, to follow "against".
        independent: Whether somebody else wrote it. Ours shares this toolkit's reading of the configuration, so a
            mistake in that is on both sides and does not show.
        left_out: What of it was not compared, as a sentence; empty if nothing was left out.
    """

    kind: str
    words: str
    independent: bool
    left_out: str = ""


OWN_MODEL = Reference("own model", "this toolkit's own PyTorch model in float64", independent=False)
DEQUANTIZED = Reference(
    "own model, dequantized",
    "this toolkit's own PyTorch model in float64 on the artifact's dequantized weights",
    independent=False,
)


@dataclass(frozen=True)
class OtherTrace:
    """One scenario as another implementation computed it.

    Our own model's gate allows what the candidate's precision costs. Another implementation's numbers carry rounding of
    their own: what computing in its type costs this model on these tokens, measured as the distance of our own model in
    that type from float64, and at most one unit in the last place of the type that they are stored in. Both follow from
    types and from how the model is conditioned: a misread configuration does not widen them.

    Attributes:
        reference: Who computed it.
        trace: The numbers; tensors and positions that it lacks are not compared.
        rounding: By tensor, the allowance beyond our own model's gate.
    """

    reference: Reference
    trace: Trace
    rounding: Mapping[TensorId, float]

    def compare(self, found: Trace, gates: Gates, scenario: str, schedule: str) -> list[Comparison]:
        """Compare a candidate's trace with it, by the gates of our own model; the names are for the report."""
        made = []
        for tensor, rows in self.trace.tensors.items():
            actual, wanted = common_positions(found.tensors[tensor], rows)
            if wanted.values.shape[1]:
                gate = _wider(gates[tensor], self.rounding[tensor])
                comparison = compare_rows(actual, wanted, tensor, gate, scenario, schedule)
                made.append(replace(comparison, against=self.reference.kind))
        return made


def common_positions(first: TensorRows, second: TensorRows) -> tuple[TensorRows, TensorRows]:
    """Return two tensors at the positions that both have."""
    start = max(first.start, second.start)
    stop = max(min(rows.start + rows.values.shape[1] for rows in (first, second)), start)
    one, other = (TensorRows(rows.values[:, start - rows.start : stop - rows.start], start) for rows in (first, second))
    return one, other


def _wider(gate: Gate, rounding: float) -> Gate:
    """Add room for rounding on the other side; a gate that was set by hand stays as it is."""
    if gate.derived is not None:
        return replace(gate, derived=gate.derived + rounding)
    return Gate(gate.limit + rounding, gate.baseline + rounding / FACTOR)


def rounding_of(
    gates: Gates,
    dtype: str,
    precision: str,
    stored: Mapping[TensorId, str],
    errors: Mapping[TensorId, float] | None,
) -> dict[TensorId, float]:
    """Return the allowance for rounding in another implementation's numbers.

    Args:
        gates: Those of our own model.
        dtype: The type they were derived for.
        precision: The type that the other code computed in.
        stored: The type that each tensor is stored in.
        errors: The error of our own model in ``precision``, see :func:`own_errors`; None: it is no coarser than
            ``dtype``, and the baseline's error is scaled by the two types' units in the last place.
    """
    share = UNIT[precision] / UNIT[dtype]
    return {
        tensor: FACTOR * (gates[tensor].baseline * share if errors is None else errors[tensor]) + UNIT[stored[tensor]]
        for tensor in stored
    }


def own_errors(found: Trace, reference: Trace, dtype: str) -> dict[TensorId, float]:
    """Return our own model's largest relative L2 error of any position in a type against float64, by tensor.

    Raises:
        LucidError: It gives values that are not finite there.
    """
    errors = {}
    for tensor, rows in reference.tensors.items():
        actual, wanted = common_positions(found.tensors[tensor], rows)
        errors[tensor] = float(position_errors(actual.values, wanted.values, tensor.accumulated).max())
        if not errors[tensor] < float("inf"):
            raise LucidError(
                f"The model gives NaN or infinity in {dtype} ({tensor}), in which the golden file was recorded: "
                "what rounding cost there is unknown. Record it in a wider type."
            )
    return errors


@dataclass(frozen=True)
class Target:
    """What a candidate must compute in one scenario.

    Attributes:
        scenario: The tokens.
        reference: What the float64 model computed.
        gates: How far from it each tensor may be.
        schedule_gates: The same by schedule, where a cache rounds and schedules are different functions.
        rounded: With such a cache, K and Y of float64 that rounds its cache in the same way, by schedule.
        size_gates: How far from 1 the size of K and Y may be against ``rounded``, by schedule.
        answers: With such a cache, what float64 answers from stored rows.
        answer_gates: How far from it the candidate's answers may be.
        others: What other implementations computed for the same tokens.
    """

    scenario: Scenario
    reference: Trace
    gates: Gates
    schedule_gates: dict[str, Gates] = field(default_factory=dict)
    rounded: dict[str, Trace] = field(default_factory=dict)
    size_gates: dict[str, SizeGates] = field(default_factory=dict)
    answers: Answers = field(default_factory=dict)
    answer_gates: dict[str, Gates] = field(default_factory=dict)
    others: tuple[OtherTrace, ...] = ()


@dataclass(frozen=True)
class Targets:
    """All targets of one model in one precision; they serve any number of candidates.

    Attributes:
        items: One for each scenario.
        dtype: The precision that the gates were derived for.
        seed: The scenarios' seed.
        tolerance: The gate of every tensor, where it was set by hand; None: gates are derived.
        cache_dtype: The cache's type that the gates were derived for; empty: the same as ``dtype``.
        workload: What is run.
    """

    items: tuple[Target, ...]
    dtype: str
    seed: int
    tolerance: float | None = None
    cache_dtype: str = ""
    workload: Workload = FULL

    def with_tolerance(self, tolerance: float) -> Targets:
        """Return the targets with one gate, set by hand, for every tensor in every scenario.

        Raises:
            LucidError: The tolerance is not above 0 and below 1.
        """
        check_tolerance(tolerance)
        items = tuple(
            Target(
                item.scenario,
                item.reference,
                {tensor: replace(gate, limit=tolerance, derived=gate.limit) for tensor, gate in item.gates.items()},
                others=item.others,
            )
            for item in self.items
        )
        return replace(self, items=items, tolerance=tolerance)


def explained_scenarios(targets: Targets, failing: str | None = None) -> list[Target]:
    """Return the scenarios to look for causes in: the failing one, correlated tokens, and the greedy one."""
    names = [failing, CORRELATED, *(item.scenario.name for item in targets.items if item.scenario.greedy)]
    by_name = {item.scenario.name: item for item in targets.items}
    return [by_name[name] for name in dict.fromkeys(names) if name in by_name][: targets.workload.explained]
