"""The result of a verification: what was measured, what explains it, and what was checked."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lucid_deploy.artifact.quantization import Quantization
from lucid_deploy.parity.causes.conditioning import HeadStats
from lucid_deploy.parity.causes.explanation import Explanation
from lucid_deploy.parity.measure.coverage import Coverage
from lucid_deploy.parity.measure.gate import FACTOR, FLOOR_UNITS, UNIT
from lucid_deploy.parity.measure.measurement import Measurement
from lucid_deploy.parity.measure.plain_data import plain
from lucid_deploy.parity.measure.quantization import QuantizationCost
from lucid_deploy.parity.show import words
from lucid_deploy.parity.show.checks import FAILED, PASSED, REPORTED, Check, not_done, verdict_of
from lucid_deploy.parity.show.data import comparison_dict, coverage_dict, curve_dict, divergence_dict
from lucid_deploy.version import __version__

# Checks that are made before sessions are compared, and what is said where only a session was given.
BEFORE = {
    "files": "a session was compared, no artifact",
    "memory": "a session was compared, no artifact",
    "weights": "a session was compared, no artifact",
}


@dataclass(frozen=True)
class Report(Measurement):
    """What a verification found.

    Attributes:
        environment: Versions and machine.
        heads: The conditioning of every head's preconditioner; empty with standard attention.
        explanation: What a closer look found, if one was taken.
        quantization: How the artifact's weights are quantized, if they are; then the reference is the model on the
            dequantized weights.
        cost: What quantization cost against the original checkpoint.
        before: The checks that were made before the comparison: of files, memory and weights.
    """

    environment: dict[str, Any] = field(default_factory=dict)
    heads: tuple[HeadStats, ...] = ()
    explanation: Explanation | None = None
    quantization: Quantization | None = None
    cost: QuantizationCost | None = None
    before: tuple[Check, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every tensor was within its gate, none was unproven, and no check before the comparison failed."""
        return super().passed and not self._failed_before

    @property
    def _failed_before(self) -> str:
        return next((check.detail for check in self.before if check.outcome == FAILED), "")

    def verdict(self) -> str:
        """Return the result as a sentence or two; of a failure, the first layer, tensor and position."""
        return words.verdict(self, self._failed_before)

    def cause(self) -> str:
        """Say where errors start, as far as it was looked into; may be empty."""
        return "" if self.explanation is None else self.explanation.sentence(failed=not super().passed)

    def advice(self) -> str:
        """Say what to do about a failure; empty if no gate failed."""
        return words.advice(self)

    @property
    def checks(self) -> tuple[Check, ...]:
        """Every check there is, made or not, in the order in which they are made."""
        made = {check.name: check for check in self.before}
        before = [made.get(name) or not_done(name, reason) for name, reason in BEFORE.items()]
        return (
            *before,
            self._tensors(),
            *self._outside(),
            self._free_generation(),
            self._causes(),
            self._text(),
            self._cost(),
            *self._beyond(),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON. Numbers that are not finite become null; such a comparison failed."""
        failure = self.failure
        return {
            "passed": self.passed,
            "verdict": self.verdict(),
            "coverage": coverage_dict(self),
            "advice": self.advice(),
            "first_failure": None if failure is None else comparison_dict(failure),
            "checks": [check.to_dict() for check in self.checks],
            "left_out": list(self.left_out),
            "runtime": self.runtime,
            "dtype": self.dtype,
            "seed": self.seed,
            "gate": {
                "factor": FACTOR,
                "floor": FLOOR_UNITS * UNIT[self.dtype],
                "tolerance": self.tolerance,
                "within_derived": self.within_derived,
            },
            "environment": self.environment,
            "scenarios": [asdict(scenario) for scenario in self.scenarios],
            "free_runs": [asdict(run) for run in self.free_runs],
            "unproven": [str(tensor) for tensor in self.unproven],
            "divergences": [divergence_dict(*pair) for pair in self.divergences()],
            "heads": plain([asdict(head) for head in self.heads]),
            "error_against_position": [curve_dict(c) for c in self.worst_by_tensor(along_positions=True).values()],
            "quantization": None if self.cost is None else self._quantization_dict(),
            "explanation": None if self.explanation is None else self.explanation.to_dict(),
            "comparisons": [comparison_dict(comparison) for comparison in self.comparisons],
        }

    def quantization_lines(self) -> list[str]:
        """Say what the reference is and what quantization cost; nothing if nothing is quantized."""
        if self.quantization is None or self.cost is None:
            return []
        about = "The reference above is the model on the artifact's dequantized weights"
        checked = " of which every element was checked against the checkpoint" if self._weights_checked else ""
        return [f"{about}{checked}.", *self.cost.lines(self.quantization, self.dtype)]

    @property
    def _weights_checked(self) -> bool:
        return any(check.name == "weights" and check.outcome == PASSED for check in self.before)

    def _quantization_dict(self) -> dict[str, Any]:
        assert self.quantization is not None and self.cost is not None
        record = {key: value for key, value in self.quantization.to_dict().items() if key != "tensors"}
        return {
            "reference": "the model on the artifact's dequantized weights",
            **record,
            "bits_per_weight": self.quantization.bits_per_weight(self.dtype),
            "weights_checked": self._weights_checked,
            "cost": plain(self.cost.to_dict()),
        }

    def _tensors(self) -> Check:
        coverage = Coverage.of(self.against())
        failed = sum(item.failed_at is not None for item in self.against())
        lost = f", and all of {', '.join(map(str, self.unproven))} is among them" if self.unproven else ""
        return Check(
            "tensors",
            verdict_of(self.own_failure is None and not self.unproven),
            f"logits, K and Y of every layer: {coverage.total:,} comparisons, of which {failed:,} failed and "
            f"{coverage.unjudged:,} could not be judged{lost}",
        )

    def _outside(self) -> Iterator[Check]:
        """Yield a check for each reference that others wrote."""
        for reference in self.outside:
            items = self.against(reference.kind)
            failed, unjudged = sum(item.failed_at is not None for item in items), Coverage.of(items).unjudged
            yield Check(
                reference.kind,
                verdict_of(not failed and unjudged < len(items)),
                f"against {reference.words}: {len(items):,} comparisons, of which {failed:,} failed and {unjudged:,} "
                "could not be judged",
            )

    def _free_generation(self) -> Check:
        if not self.free_runs:
            return not_done("free generation", "no sequence was generated freely")
        return Check("free generation", REPORTED, " ".join(map(words.free_run_line, self.free_runs)))

    def _causes(self) -> Check:
        found = self.explanation
        if found is None:
            nothing = "nothing failed" if self.failure is None else "our own model has no other numbers"
            return not_done("causes", f"{nothing}, and --explain or --report was not given")
        if found.unavailable is not None:
            return not_done("causes", found.unavailable)
        if not found.findings:
            return not_done("causes", "only the text was looked at")
        judged, failed = sum(item.judged for item in found.findings), sum(item.failed for item in found.findings)
        return Check(
            "causes",
            REPORTED,
            f"own errors of every part of every layer in {', '.join(found.scenarios)}: {failed:,} of {judged:,} are "
            f"beyond their gates, {len(found.findings) - judged:,} more could not be judged",
        )

    def _text(self) -> Check:
        found = None if self.explanation is None else self.explanation.perplexity
        if found is None:
            return not_done("text", "no text was given (--text)")
        return Check("text", REPORTED, words.perplexity_line(found))

    def _cost(self) -> Check:
        if self.cost is None:
            return not_done("cost of quantization", "nothing is quantized")
        return Check("cost of quantization", REPORTED, "measured against the original checkpoint in float64")

    def _beyond(self) -> list[Check]:
        """Return what no verification of this kind checks, so that nobody takes it for checked."""
        found = [not_done("whole verification", sentence) for sentence in self.left_out]
        if self.context > self.longest:
            found.append(
                not_done("longer contexts", f"the longest sequence had {self.longest:,} of {self.context:,} tokens")
            )
        found += [not_done(f"whole {item.kind}", item.left_out) for item in self.outside if item.left_out]
        if not self.outside:
            found.append(
                not_done(
                    "another implementation",
                    "the reference reads config.json as the export does: what both get wrong does not show "
                    "(--golden, --against)",
                )
            )
        return found


def environment(packages: Sequence[str]) -> dict[str, Any]:
    """Return versions and machine, to write beside results.

    Args:
        packages: Import names of what ran the candidate; versions are looked up without importing them.
    """
    versions = {"lucid-deploy": __version__, "python": platform.python_version()}
    installed = importlib.metadata.packages_distributions()
    for package in ("numpy", "torch", *packages):
        versions.update({name: importlib.metadata.version(name) for name in installed.get(package, ())})
    machine = {"system": platform.platform(), "processor": platform.machine(), "cpus": os.cpu_count()}
    return {"versions": versions, "machine": machine}
