"""The result of a verification: one dataclass that the terminal, the JSON and the page read."""

from __future__ import annotations

import functools
import importlib.metadata
import math
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lucid_deploy.artifact.quantization import Quantization
from lucid_deploy.errors import CheckFailed
from lucid_deploy.model.scenarios import SCHEDULES
from lucid_deploy.parity import words
from lucid_deploy.parity.causes.conditioning import HeadStats
from lucid_deploy.parity.causes.explain import Explanation
from lucid_deploy.parity.gate import FACTOR, FLOOR_UNITS, UNIT, Comparison, Coverage, first_failure
from lucid_deploy.parity.metrics import Divergence
from lucid_deploy.parity.quantization_cost import QuantizationCost
from lucid_deploy.parity.record import TensorId
from lucid_deploy.parity.targets import OWN_MODEL, Reference
from lucid_deploy.version import __version__

PASSED, FAILED, REPORTED, NOT_DONE = "passed", "failed", "reported", "not done"
FREE_RUNNING = "free-running"  # name of the schedule in which the candidate's own tokens are fed back
ARTIFACT_CHECKS = ("files", "weights")  # made before the comparison, if there is an artifact
COMPARISON_CHECKS = ("tensors", "free generation", "causes")  # need the comparison
FACTS = ("artifact", "checkpoint", "device", "provider", "kernels")  # those that the JSON repeats


@dataclass(frozen=True)
class Check:
    """One thing that a verification checks, or could check.

    Attributes:
        name: What it is about, such as ``files``.
        outcome: ``passed``, ``failed``, ``reported`` (measured without a gate) or ``not done``.
        detail: What was found; of a check that was not done, why not.
    """

    name: str
    outcome: str
    detail: str

    @property
    def done(self) -> bool:
        """Whether anything was checked."""
        return self.outcome != NOT_DONE


@dataclass(frozen=True)
class ScenarioInfo:
    """Name and size of a scenario, in tokens and decode steps."""

    name: str
    prompt_tokens: int
    decode_steps: int


@dataclass(frozen=True)
class FreeRun:
    """A free-running greedy generation.

    Attributes:
        scenario: Whose prompt was continued.
        tokens: How many tokens PyTorch generated in the same precision.
        agreed: How many of them the candidate generated too, before the first other one.
    """

    scenario: str
    tokens: int
    agreed: int


@dataclass(frozen=True)
class Verification:
    """The result of a verification.

    Attributes:
        facts: About the artifact: ``artifact``, ``checkpoint``, ``device``, ``provider``, ``kernels``, ``model`` (its
            configuration), ``summary``, ``cache``, ``files``, ``bytes``, ``exported_with`` (versions); empty where a
            session was compared without one.
        seconds: How long it took.
        artifact_checks: The checks of files and weights.
        comparisons: Every tensor in every scenario and schedule; empty if a check before the comparison failed.
        runtime: What ran the candidate.
        label: The same for people, such as ``onnxruntime (cuda)``.
        dtype: Its precision.
        seed: Seed of the scenarios.
        scenarios: What was run.
        free_runs: Greedy generations.
        context: Tokens that the model takes at most.
        tolerance: The gate that was set by hand in place of the derived ones, if one was.
        left_out: What a full verification does beyond this one, a sentence each.
        no_drafts: Why the step that verifies drafts was not run; empty if it was.
        reference: What the candidate was compared with.
        others: Other implementations that it was compared with; comparisons name their kind in ``against``.
        runs_graphs: Whether the candidate ran the artifact's graphs, not its weights alone.
        fallback_hint: How to run the candidate with less code of ours, as the end of a sentence; None: not possible.
        rounded_cache: Type of its cache, if that is another one than ``dtype``.
        rounded_inputs: Type that inputs of quantized products are rounded to, if they are.
        environment: Versions and machine.
        heads: The conditioning of every head's solve; empty with standard attention.
        explanation: Where errors start and why, if that was looked for.
        quantization: How the artifact's weights are quantized, if they are; then the reference is the model on the
            dequantized weights.
        cost: What quantization cost against the original checkpoint.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    artifact_checks: tuple[Check, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    runtime: str = ""
    label: str = ""
    dtype: str = ""
    seed: int = 0
    scenarios: tuple[ScenarioInfo, ...] = ()
    free_runs: tuple[FreeRun, ...] = ()
    context: int = 0
    tolerance: float | None = None
    left_out: tuple[str, ...] = ()
    no_drafts: str = ""
    reference: Reference = OWN_MODEL
    others: tuple[Reference, ...] = ()
    runs_graphs: bool = True
    fallback_hint: str | None = None
    rounded_cache: str | None = None
    rounded_inputs: str | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    heads: tuple[HeadStats, ...] = ()
    explanation: Explanation | None = None
    quantization: Quantization | None = None
    cost: QuantizationCost | None = None

    @property
    def passed(self) -> bool:
        """Whether the comparison was made, every tensor is within its gate and tested, and no other check failed."""
        return bool(self.comparisons) and self.tensors_passed and not self.failed_artifact_check

    @property
    def tensors_passed(self) -> bool:
        """Whether every tensor is within its gate, and none was left without a gate that means something."""
        return self.first_failure is None and not self.unproven

    @property
    def failure(self) -> str:
        """What failed first, in one line; empty if nothing did."""
        if self.comparisons and not self.passed:
            name = self.facts.get("artifact", self.label)
            return f"{name} failed: {self.verdict()} {self.cause()}".rstrip()
        return self.failed_artifact_check

    @property
    def failed_artifact_check(self) -> str:
        """What the first failed check of the artifact found; empty if none failed."""
        return next((check.detail for check in self.artifact_checks if check.outcome == FAILED), "")

    def raise_if_failed(self) -> Verification:
        """Return the verification if it passed.

        Raises:
            CheckFailed: Something failed; the first failure is the message.
        """
        if not self.passed:
            raise CheckFailed(self.failure)
        return self

    def verdict(self) -> str:
        """Return the result as a sentence or two; of a failure, the first layer, tensor and position."""
        return words.verdict(self)

    def cause(self) -> str:
        """Say where errors start, as far as it was looked into; may be empty."""
        return "" if self.explanation is None else self.explanation.sentence(failed=not self.tensors_passed)

    def advice(self) -> str:
        """Say what to do about a failure; empty if no gate failed."""
        return words.advice(self)

    # What the comparison found

    def against(self, kind: str = "") -> tuple[Comparison, ...]:
        """Return the comparisons with one reference, by its kind; empty: with our own model."""
        return tuple(item for item in self.comparisons if item.against == kind)

    @functools.cached_property
    def own_failure(self) -> Comparison | None:
        """The first failed comparison with our own model, in the order layer, tensor, position."""
        return first_failure(self.against())

    @functools.cached_property
    def first_failure(self) -> Comparison | None:
        """The first failed comparison; None if every gate held.

        One with our own model comes before all others, since what it finds is nearer to the cause.
        """
        return self.own_failure or first_failure(self.comparisons)

    @functools.cached_property
    def unproven(self) -> tuple[TensorId, ...]:
        """The tensors that were not judged in any scenario of some schedule: passing there proves nothing.

        Each reference counts for itself. Schedules of a single scenario do not count.
        """
        single = {FREE_RUNNING, *(schedule.name for schedule in SCHEDULES if schedule.greedy_only)}
        judged: dict[tuple[TensorId, str, str], bool] = {}
        for item in self.comparisons:
            if item.schedule not in single:
                key = (item.tensor, item.schedule, item.against)
                judged[key] = judged.get(key, False) or item.judged
        return tuple(sorted({tensor for (tensor, _, _), any_judged in judged.items() if not any_judged}))

    @property
    def coverage(self) -> Coverage:
        """How many of the comparisons could have failed."""
        return Coverage.of(self.comparisons)

    def coverage_by_reference(self) -> Iterator[tuple[Reference, Coverage]]:
        """Yield every reference with how many of the comparisons with it could have failed, our own model first."""
        yield self.reference, Coverage.of(self.against())
        for reference in self.others:
            yield reference, Coverage.of(self.against(reference.kind))

    @property
    def within_derived(self) -> bool:
        """Whether the derived gates hold, also where a tolerance replaced them."""
        return all(comparison.within_derived for comparison in self.comparisons)

    def worst_by_tensor(self, along_positions: bool = False) -> dict[TensorId, Comparison]:
        """Return every tensor's worst comparison with our own model, in the order of computation; judged ones first.

        Args:
            along_positions: Only comparisons of more than one position count.
        """
        worst: dict[TensorId, Comparison] = {}
        for item in self.against():
            if along_positions and len(item.errors) < 2:
                continue
            before = worst.get(item.tensor)
            if before is None or (item.judged, item.severity) > (before.judged, before.severity):
                worst[item.tensor] = item
        return {tensor: worst[tensor] for tensor in sorted(worst)}

    def divergences(self) -> list[tuple[Comparison, Divergence]]:
        """Return every position with another most likely token than the reference's, real ones first."""
        found = [(c, item) for c in self.comparisons if c.logits is not None for item in c.logits.divergences]
        return sorted(found, key=lambda pair: pair[1].near_tie)

    # Every check there is, so that nobody takes one for made that was not

    @property
    def checks(self) -> tuple[Check, ...]:
        """Every check there is, made or not, in the order in which they are made."""
        made = {check.name: check for check in self.artifact_checks}
        if not self.comparisons:
            missing = [name for name in (*ARTIFACT_CHECKS, *COMPARISON_CHECKS) if name not in made]
            return (*self.artifact_checks, *(not_done(name, "a check before it failed") for name in missing))
        before = (made.get(name) or not_done(name, "a session was compared, no artifact") for name in ARTIFACT_CHECKS)
        return (
            *before,
            self._tensors_check(),
            *map(self._reference_check, self.others),
            self._free_generation_check(),
            self._causes_check(),
            self._text_check(),
            self._cost_check(),
            *self._never_checked(),
        )

    def _tensors_check(self) -> Check:
        coverage = Coverage.of(self.against())
        failed = sum(item.failed_at is not None for item in self.against())
        lost = f", and all of {', '.join(map(str, self.unproven))} is among them" if self.unproven else ""
        return Check(
            "tensors",
            PASSED if self.own_failure is None and not self.unproven else FAILED,
            f"logits and {words.cached(self)} of every layer: {coverage.total:,} comparisons, of which {failed:,} "
            f"failed and {coverage.unjudged:,} could not be judged{lost}",
        )

    def _reference_check(self, reference: Reference) -> Check:
        items = self.against(reference.kind)
        failed, unjudged = sum(item.failed_at is not None for item in items), Coverage.of(items).unjudged
        return Check(
            reference.kind,
            PASSED if not failed and unjudged < len(items) else FAILED,
            f"against {reference.words}: {len(items):,} comparisons, of which {failed:,} failed and {unjudged:,} "
            "could not be judged",
        )

    def _free_generation_check(self) -> Check:
        if not self.free_runs:
            return not_done("free generation", "no sequence was generated freely")
        return Check("free generation", REPORTED, " ".join(map(words.free_run_line, self.free_runs)))

    def _causes_check(self) -> Check:
        found = self.explanation
        if found is None:
            nothing = "nothing failed" if self.first_failure is None else "our own model agrees with the artifact"
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

    def _text_check(self) -> Check:
        found = None if self.explanation is None else self.explanation.perplexity
        if found is None:
            return not_done("text", "no text was given (--text)")
        return Check("text", REPORTED, words.perplexity_line(found))

    def _cost_check(self) -> Check:
        if self.cost is None:
            return not_done("cost of quantization", "nothing is quantized")
        return Check("cost of quantization", REPORTED, "measured against the original checkpoint in float64")

    def _never_checked(self) -> Iterator[Check]:
        for sentence in self.left_out:
            yield not_done("full verification", sentence)
        if self.no_drafts:
            yield not_done("verification of drafts", self.no_drafts)
        longest = max(info.prompt_tokens + info.decode_steps for info in self.scenarios)
        if self.context > longest:
            yield not_done("longer contexts", f"the longest sequence had {longest:,} of {self.context:,} tokens")
        for reference in self.others:
            if reference.left_out:
                yield not_done(f"all of the {reference.kind}", reference.left_out)
        if not self.others:
            yield not_done(
                "another implementation",
                "the reference reads config.json as the export does: a mistake in both does not show "
                "(--golden, --against)",
            )

    # JSON

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON. Numbers that are not finite become null; such a comparison failed."""
        data: dict[str, Any] = {}
        if self.facts:
            data = {name: self.facts[name] for name in FACTS}
            data["hashes_checked"] = any(check.name == "files" and check.done for check in self.artifact_checks)
            data["seconds"] = round(self.seconds, 1)
        return {
            **data,
            "passed": self.passed,
            "verdict": self.verdict(),
            "checks": [{**asdict(check), "done": check.done} for check in self.checks],
            **(plain(self._comparison_dict()) if self.comparisons else {}),
        }

    def _comparison_dict(self) -> dict[str, Any]:
        first = self.first_failure
        return {
            "coverage": self._coverage_dict(),
            "advice": self.advice(),
            "first_failure": None if first is None else _one_comparison(first),
            "left_out": self.left_out,
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
            "divergences": [_one_divergence(*pair) for pair in self.divergences()],
            "heads": [asdict(head) for head in self.heads],
            "error_against_position": [_curve(item) for item in self.worst_by_tensor(along_positions=True).values()],
            "quantization": self._quantization_dict(),
            "explanation": None if self.explanation is None else self.explanation.to_dict(),
            "comparisons": [_one_comparison(comparison) for comparison in self.comparisons],
        }

    def _coverage_dict(self) -> dict[str, Any]:
        def counts(coverage: Coverage) -> dict[str, int]:
            return {**asdict(coverage), "unjudged": coverage.unjudged}

        each = [{**asdict(reference), **counts(coverage)} for reference, coverage in self.coverage_by_reference()]
        return {**counts(self.coverage), "reference": asdict(self.reference), "references": each}

    def _quantization_dict(self) -> dict[str, Any] | None:
        if self.quantization is None or self.cost is None:
            return None
        record = {key: value for key, value in self.quantization.to_dict().items() if key != "tensors"}
        return {
            "reference": "the model on the artifact's dequantized weights",
            **record,
            "bits_per_weight": self.quantization.bits_per_weight(self.dtype),
            "weights_checked": any(c.name == "weights" and c.outcome == PASSED for c in self.artifact_checks),
            "cost": asdict(self.cost),
        }


def not_done(name: str, reason: str) -> Check:
    """Return a check that was not made."""
    return Check(name, NOT_DONE, reason)


def divergence_class(comparison: Comparison, item: Divergence) -> str:
    """Return ``near-tie``, ``real``, or ``not judged`` where the gate would let any token pass."""
    if not comparison.judged:
        return "not judged"
    return "near-tie" if item.near_tie else "real"


def plain(data: Any) -> Any:
    """Return data for JSON: tuples as lists, numbers that are not finite as null."""
    if isinstance(data, dict):
        return {key: plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [plain(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _one_comparison(item: Comparison) -> dict[str, Any]:
    """Return one comparison; ``passed`` is null where nothing was judged."""
    trend, logits = item.growth, item.logits
    numbers = {} if logits is None else {key: value for key, value in asdict(logits).items() if key != "divergences"}
    return {
        "scenario": item.scenario,
        "schedule": item.schedule,
        "against": item.against or OWN_MODEL.kind,
        "tensor": str(item.tensor),
        "layer": None if item.tensor.is_logits else item.tensor.layer,
        "passed": item.failed_at is None if item.judged else None,
        "outcome": item.outcome,
        "judged": item.judged,
        "blind_positions": item.blind_positions,
        "failed_at": item.failed_at,
        "error": item.error,
        "gate": item.gate.limit,
        "gate_derived": item.gate.limit if item.gate.derived is None else item.gate.derived,
        "baseline_error": item.gate.baseline,
        **asdict(item.metrics),
        "growth": None if trend is None else asdict(trend),
        "logits": None if logits is None else numbers,
    }


def _one_divergence(comparison: Comparison, item: Divergence) -> dict[str, Any]:
    against = comparison.against or OWN_MODEL.kind
    where = {"scenario": comparison.scenario, "schedule": comparison.schedule, "against": against}
    return {**where, "class": divergence_class(comparison, item), **asdict(item)}


def _curve(item: Comparison) -> dict[str, Any]:
    """Return the error of every position of one comparison."""
    where = {"tensor": str(item.tensor), "scenario": item.scenario, "schedule": item.schedule}
    return {**where, "start": item.start, "errors": item.errors.tolist()}


def environment(packages: Sequence[str]) -> dict[str, Any]:
    """Return machine and versions; ``packages`` are import names, whose versions are read without importing them."""
    versions = {"lucid-deploy": __version__, "python": platform.python_version()}
    installed = importlib.metadata.packages_distributions()
    for package in ("numpy", "torch", *packages):
        versions.update({name: importlib.metadata.version(name) for name in installed.get(package, ())})
    machine = {"system": platform.platform(), "processor": platform.machine(), "cpus": os.cpu_count()}
    return {"versions": versions, "machine": machine}
