"""What a candidate is compared with: the reference's numbers and the gates, scenario by scenario."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lucid_deploy.errors import LucidError
from lucid_deploy.model.scenarios import CORRELATED, Scenario
from lucid_deploy.parity.measure.cache_gates import SizeGates
from lucid_deploy.parity.measure.compare import TensorId, Trace
from lucid_deploy.parity.measure.extent import FULL, VerificationExtent
from lucid_deploy.parity.measure.gate import VACUOUS, Gate
from lucid_deploy.parity.measure.outside_trace import OutsideTrace


@dataclass(frozen=True)
class Target:
    """What a candidate must compute in one scenario.

    Attributes:
        scenario: The tokens.
        reference: What the float64 model computed.
        gates: How far from it each tensor may be.
        by_schedule: The same where a cache rounds and the way the prompt is fed matters, by the schedule's name.
        rounded: With such a cache, K and Y of float64 that rounds its cache in the same way, by the schedule's name.
        sizes: How far from 1 the size of K and Y may be, held against ``rounded``, by the schedule's name and then by
            who wrote the rows; see :mod:`lucid_deploy.parity.measure.cache_gates`.
        given: With such a cache, what float64 answers from given rows; see
            :mod:`lucid_deploy.parity.measure.given_cache`.
        given_gates: How far from it the candidate's answers may be.
        outside: What others than our own model computed for the same tokens.
    """

    scenario: Scenario
    reference: Trace
    gates: dict[TensorId, Gate]
    by_schedule: dict[str, dict[TensorId, Gate]] = field(default_factory=dict)
    rounded: dict[str, Trace] = field(default_factory=dict)
    sizes: dict[str, SizeGates] = field(default_factory=dict)
    given: dict[str, Trace] = field(default_factory=dict)
    given_gates: dict[str, dict[TensorId, Gate]] = field(default_factory=dict)
    outside: tuple[OutsideTrace, ...] = ()


@dataclass(frozen=True)
class Targets:
    """All targets of one model in one precision; they serve any number of candidates.

    Attributes:
        items: One for each scenario.
        dtype: The precision that the gates were derived for.
        seed: The scenarios' seed.
        tolerance: The gate of every tensor, where it was set by hand; None: gates are derived.
        cache_dtype: The cache's type that the gates were derived for; empty: the same as ``dtype``.
        extent: How much is run.
    """

    items: tuple[Target, ...]
    dtype: str
    seed: int
    tolerance: float | None = None
    cache_dtype: str = ""
    extent: VerificationExtent = FULL

    def with_tolerance(self, tolerance: float) -> Targets:
        """Return the targets with one gate, set by hand, for every tensor in every scenario.

        Args:
            tolerance: Largest relative L2 error of a position, above 0 and below 1.

        Raises:
            LucidError: A tolerance outside of that: at 1, a tensor of zeros would pass.
        """
        check_tolerance(tolerance)
        items = tuple(
            replace(
                item,
                gates={tensor: gate.replaced(tolerance) for tensor, gate in item.gates.items()},
                by_schedule={},
                rounded={},
                sizes={},
                given={},
                given_gates={},
            )
            for item in self.items
        )
        return replace(self, items=items, tolerance=tolerance)


def explained_scenarios(targets: Targets, failing: str | None = None) -> list[Target]:
    """Return the scenarios worth a closer look: the failing one, correlated tokens, and the one the model continued."""
    names = [failing, CORRELATED, *(item.scenario.name for item in targets.items if item.scenario.greedy)]
    by_name = {item.scenario.name: item for item in targets.items}
    return [by_name[name] for name in dict.fromkeys(names) if name in by_name][: targets.extent.explained]


def check_tolerance(tolerance: float) -> None:
    """Check a tolerance set by hand.

    Raises:
        LucidError: It is not above 0 and below 1; at 1, a tensor of zeros would pass.
    """
    if not 0 < tolerance < VACUOUS:
        raise LucidError(
            f"The tolerance is a relative error above 0 and below {VACUOUS:.0f}, not {tolerance}: at {VACUOUS:.0f} a "
            "tensor of zeros would pass."
        )
