"""What somebody else's code computed for a scenario, and how far from it the candidate may be.

Our own model's gate allows what the candidate's precision costs. Another implementation has rounding of its own, which
its numbers carry: what computing in its type costs this model on these tokens, measured as the distance of our own
model in that type from float64, and at most one unit in the last place of the type that the numbers are stored in. Both
follow from types and from how the model is conditioned, not from what it computes: a misread configuration does not
widen them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lucid_deploy.errors import LucidError
from lucid_deploy.parity.measure.compare import TensorId, TensorRows, Trace
from lucid_deploy.parity.measure.gate import FACTOR, UNIT, Comparison, Gate, compare_rows
from lucid_deploy.parity.measure.measurement import Reference
from lucid_deploy.parity.measure.metrics import position_errors


@dataclass(frozen=True)
class OutsideTrace:
    """One scenario as somebody else computed it.

    Attributes:
        reference: Who.
        trace: What; tensors and positions that it lacks are not compared.
        rounding: By tensor, what is allowed beyond our own model's gate, for rounding in these numbers.
    """

    reference: Reference
    trace: Trace
    rounding: Mapping[TensorId, float]

    def compare(self, found: Trace, gates: Mapping[TensorId, Gate], scenario: str, schedule: str) -> list[Comparison]:
        """Hold what a candidate computed against it.

        Args:
            found: The candidate's.
            gates: Those of our own model.
            scenario: Name, for the report.
            schedule: Name, for the report.
        """
        made = []
        for tensor, rows in self.trace.tensors.items():
            actual, wanted = shared(found.tensors[tensor], rows)
            if wanted.values.shape[1]:
                gate = wider(gates[tensor], self.rounding[tensor])
                comparison = compare_rows(actual, wanted, tensor, gate, scenario, schedule)
                made.append(replace(comparison, against=self.reference.kind))
        return made


def shared(first: TensorRows, second: TensorRows) -> tuple[TensorRows, TensorRows]:
    """Return two tensors at the positions that both have."""
    start = max(first.start, second.start)
    stop = max(min(rows.start + rows.values.shape[1] for rows in (first, second)), start)
    one, other = (TensorRows(rows.values[:, start - rows.start : stop - rows.start], start) for rows in (first, second))
    return one, other


def wider(gate: Gate, rounding: float) -> Gate:
    """Return a gate with room for rounding on the other side; one that was set by hand stays as it is."""
    if gate.derived is not None:
        return replace(gate, derived=gate.derived + rounding)
    return Gate(gate.limit + rounding, gate.baseline + rounding / FACTOR)


def rounding_of(
    gates: Mapping[TensorId, Gate],
    dtype: str,
    precision: str,
    stored: Mapping[TensorId, str],
    errors: Mapping[TensorId, float] | None,
) -> dict[TensorId, float]:
    """Return what is allowed for rounding in somebody else's numbers.

    Args:
        gates: Those of our own model.
        dtype: The type they were derived for.
        precision: The type that the other code computed in.
        stored: The type that each tensor is stored in.
        errors: The error of our own model in that type, see :func:`own_errors`; None: it is no coarser than ``dtype``,
            so that the baseline's error, in proportion to the units in the last place, says it.
    """
    share = UNIT[precision] / UNIT[dtype]
    return {
        tensor: FACTOR * (gates[tensor].baseline * share if errors is None else errors[tensor]) + UNIT[stored[tensor]]
        for tensor in stored
    }


def own_errors(found: Trace, reference: Trace, dtype: str) -> dict[TensorId, float]:
    """Return our own model's largest relative L2 error of any position, tensor by tensor.

    Args:
        found: What it computed in a type.
        reference: What it computed in float64.
        dtype: The type.

    Raises:
        LucidError: It gives values that are not finite there.
    """
    errors = {}
    for tensor, rows in reference.tensors.items():
        actual, wanted = shared(found.tensors[tensor], rows)
        errors[tensor] = float(position_errors(actual.values, wanted.values, tensor.accumulated).max())
        if not errors[tensor] < float("inf"):
            raise LucidError(
                f"The model gives NaN or infinity in {dtype} ({tensor}), in which the golden file was recorded: "
                "what rounding cost there cannot be told. Record it in a wider type."
            )
    return errors
