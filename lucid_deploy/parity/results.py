"""The result of a verification: one dataclass that terminal, page and JSON show."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from lucid_deploy.artifact.quantization import Quantization
from lucid_deploy.errors import CheckFailed, NotProvenError
from lucid_deploy.parity import words
from lucid_deploy.parity.causes import Explanation
from lucid_deploy.parity.gate import FACTOR, FLOOR_UNITS, UNIT, Comparison, Coverage, first_failure
from lucid_deploy.parity.perplexity import TextCost
from lucid_deploy.parity.record import TensorId
from lucid_deploy.parity.targets import OWN_MODEL, Reference
from lucid_deploy.parity.verdict import in_sentences, lost, reasons_not_proven, unproven_tensors

PASSED, FAILED, REPORTED, NOT_DONE = "passed", "failed", "reported", "not done"
ARTIFACT_CHECKS = ("files", "weights")  # done before the comparison, if there is an artifact
FACTS = ("artifact", "checkpoint", "device", "provider", "kernels")  # the facts that go into the JSON


@dataclass(frozen=True)
class Check:
    """One thing that a verification checks, or could check."""

    name: str  # what is checked, such as "files"
    outcome: str  # passed, failed, reported (it has no gate, or its gates are too wide to prove enough), or not done
    detail: str  # what was found, or why the check was not done

    @property
    def done(self) -> bool:
        """Whether anything was checked."""
        return self.outcome != NOT_DONE


@dataclass(frozen=True)
class ScenarioInfo:
    """Name of a scenario and its numbers of prompt tokens and decode steps."""

    name: str
    prompt_tokens: int
    decode_steps: int


@dataclass(frozen=True)
class FreeRun:
    """How many tokens of a free greedy generation agree with PyTorch's, derived from the run with forced tokens."""

    scenario: str  # the scenario whose prompt was continued
    tokens: int  # number of tokens that PyTorch generated in the same precision
    agreed: int  # how many of these the candidate generates before its first token that differs


@dataclass(frozen=True)
class Verification:
    """The result of a verification."""

    # Facts about the artifact: artifact, checkpoint, device, provider, kernels, model (its configuration), summary,
    # cache, files, bytes, exported_with (versions). Empty if only a session was compared.
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    artifact_checks: tuple[Check, ...] = ()  # of files and weights; of tensors only if they could not be compared
    form_checks: tuple[Check, ...] = ()  # of the graphs in other forms than the one that was compared in full
    comparisons: tuple[Comparison, ...] = ()  # empty if an earlier check failed
    runtime: str = ""  # the runtime that ran the candidate
    label: str = ""  # its name for people, such as "onnxruntime (cuda)"
    dtype: str = ""
    seed: int = 0
    scenarios: tuple[ScenarioInfo, ...] = ()
    free_runs: tuple[FreeRun, ...] = ()
    context: int = 0  # maximum number of tokens that the model takes
    left_out: tuple[str, ...] = ()  # one sentence for each part of a full verification that was left out
    no_drafts: str = ""  # why the step that verifies drafts was not run; empty if it was
    reference: Reference = OWN_MODEL
    others: tuple[Reference, ...] = ()  # other implementations; comparisons name their kind in `against`
    runs_graphs: bool = True  # False if the candidate ran the artifact's weights without its graphs
    fallback_hint: str | None = None  # how to run the candidate without our kernels, as the end of a sentence
    rounded_cache: str | None = None  # the cache's dtype, if it is not `dtype`
    rounded_inputs: str | None = None  # the type that inputs of quantized matrix products are rounded to, if any
    environment: dict[str, Any] = field(default_factory=dict)  # versions and machine
    explanation: Explanation | None = None  # where errors start and why, if causes were searched for
    text: TextCost | None = None  # perplexity compared with the original model's, if a text was given
    quantization: Quantization | None = None  # if not None, the reference is the model on the dequantized weights

    not_proven = functools.cached_property(reasons_not_proven)
    unproven = functools.cached_property(unproven_tensors)

    @property
    def passed(self) -> bool:
        """Whether tensors were compared, nothing failed, and what held proves enough (:func:`reasons_not_proven`)."""
        return not self.failed and not self.not_proven

    @property
    def failed(self) -> bool:
        """Whether a tensor is beyond its gate, no tensor was compared, or a check of the artifact or a form failed."""
        return not self.comparisons or self.first_failure is not None or bool(self.failed_artifact_check)

    @property
    def failure(self) -> str:
        """What failed first, or what was not proven, in one line; empty if the verification passed."""
        if self.comparisons and not self.passed:
            outcome = f"{self.facts.get('artifact', self.label)} {'failed' if self.failed else 'is not proven'}"
            return f"{outcome}: {self.verdict()} {self.cause()}".rstrip()
        return self.failed_artifact_check

    @property
    def failed_artifact_check(self) -> str:
        """Detail of the first failed check of the artifact or of its other forms; empty if none failed."""
        return next((each.detail for each in (*self.artifact_checks, *self.form_checks) if each.outcome == FAILED), "")

    def raise_if_failed(self) -> Verification:
        """Return this verification if it passed; raise CheckFailed, or NotProvenError if too little is proven."""
        if not self.passed:
            raise (CheckFailed if self.failed else NotProvenError)(self.failure)
        return self

    def verdict(self) -> str:
        """Return the result in a sentence or two; a failure names the first layer, tensor and position."""
        return in_sentences(self)

    def cause(self) -> str:
        """Say where errors start, or why that is unknown; empty if causes were not searched for, or nothing failed."""
        failed, unproven = self.first_failure is not None, bool(self.not_proven)
        return "" if self.explanation is None else self.explanation.sentence(failed, unproven)

    def against(self, kind: str = "") -> tuple[Comparison, ...]:
        """Return the comparisons with the reference of this kind; by default, those with our own model."""
        return tuple(item for item in self.comparisons if item.against == kind)

    @functools.cached_property
    def own_failure(self) -> Comparison | None:
        """The first failed comparison with our own model, in the order layer, tensor, position."""
        return first_failure(self.against())

    @functools.cached_property
    def first_failure(self) -> Comparison | None:
        """The first failed comparison; None if every gate held.

        A failure against our own model comes before all others, since it is nearer to the cause.
        """
        return self.own_failure or first_failure(self.comparisons)

    @property
    def coverage(self) -> Coverage:
        """Counts of all comparisons and of those that could have failed."""
        return Coverage.of(self.comparisons)

    def coverage_by_reference(self) -> Iterator[tuple[Reference, Coverage]]:
        """Yield every reference, our own model first, with the coverage of the comparisons with it."""
        yield self.reference, Coverage.of(self.against())
        for reference in self.others:
            yield reference, Coverage.of(self.against(reference.kind))

    def worst_by_tensor(self, along_positions: bool = False) -> dict[TensorId, Comparison]:
        """Return every tensor's worst comparison with our own model, in the order of computation.

        Judged comparisons take precedence. With ``along_positions``, those of a single position are left out.
        """
        worst: dict[TensorId, Comparison] = {}
        for item in self.against():
            if along_positions and len(item.errors) < 2:
                continue
            before = worst.get(item.tensor)
            if before is None or (item.judged, item.severity) > (before.judged, before.severity):
                worst[item.tensor] = item
        return {tensor: worst[tensor] for tensor in sorted(worst)}

    @property
    def checks(self) -> tuple[Check, ...]:
        """All checks in order, including those that were not done, with the reason."""
        made = {check.name: check for check in self.artifact_checks}
        if not self.comparisons:
            missing = [name for name in (*ARTIFACT_CHECKS, "tensors", "free generation", "causes") if name not in made]
            return (*self.artifact_checks, *(not_done(name, "an earlier check failed") for name in missing))
        before = (made.get(name) or not_done(name, "only a session was compared") for name in ARTIFACT_CHECKS)
        return (
            *before,
            self._tensors_check(),
            *self.form_checks,
            *map(self._reference_check, self.others),
            self._free_generation_check(),
            self._causes_check(),
            self._text_check(),
            *self._never_checked(),
        )

    def _tensors_check(self) -> Check:
        coverage = Coverage.of(self.against())
        failed = sum(item.failed_at is not None for item in self.against())
        unproven = f", and all of {lost(self)} is among them" if self.unproven else ""
        return Check(
            "tensors",
            FAILED if self.own_failure else REPORTED if self.not_proven else PASSED,
            f"logits and {words.cached(self)} of every layer: {coverage.total:,} comparisons, of which {failed:,} "
            f"failed and {coverage.unjudged:,} could not be judged{unproven}",
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
        judged, failed = sum(item.judged for item in found.findings), sum(item.failed for item in found.findings)
        return Check(
            "causes",
            REPORTED,
            f"own errors of every part of every layer in {', '.join(found.scenarios)}: {failed:,} of {judged:,} are "
            f"beyond their gates, {len(found.findings) - judged:,} more could not be judged",
        )

    def _text_check(self) -> Check:
        if self.text is None:
            lost = "" if self.quantization is None else ", so what quantization costs was not measured"
            return not_done("text", f"no text was given (--text){lost}")
        return Check("text", REPORTED, words.text_line(self, self.text))

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
                "the reference reads config.json as the export does: a mistake in both does not show (--golden)",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON. Numbers that are not finite become null; comparisons with such numbers failed."""
        data: dict[str, Any] = {}
        if self.facts:
            data = {name: self.facts[name] for name in FACTS}
            data["hashes_checked"] = any(check.name == "files" and check.done for check in self.artifact_checks)
            data["seconds"] = round(self.seconds, 1)
        return {
            **data,
            "passed": self.passed,
            "not_proven": list(self.not_proven),
            "verdict": self.verdict(),
            "checks": [{**asdict(check), "done": check.done} for check in self.checks],
            **(plain(self._comparison_dict()) if self.comparisons else {}),
        }

    def _comparison_dict(self) -> dict[str, Any]:
        first = self.first_failure
        return {
            "coverage": self._coverage_dict(),
            "advice": words.advice(self),
            "first_failure": None if first is None else _one_comparison(first),
            "left_out": self.left_out,
            "runtime": self.runtime,
            "dtype": self.dtype,
            "seed": self.seed,
            "gate": {"factor": FACTOR, "floor": FLOOR_UNITS * UNIT[self.dtype]},
            "environment": self.environment,
            "scenarios": [asdict(scenario) for scenario in self.scenarios],
            "free_runs": [asdict(run) for run in self.free_runs],
            "unproven": [str(tensor) for tensor in self.unproven],
            "error_against_position": [_curve(item) for item in self.worst_by_tensor(along_positions=True).values()],
            "quantization": self._quantization_dict(),
            "explanation": None if self.explanation is None else self.explanation.to_dict(),
            "perplexity": None if self.text is None else asdict(self.text),
            "comparisons": [_one_comparison(comparison) for comparison in self.comparisons],
        }

    def _coverage_dict(self) -> dict[str, Any]:
        def counts(coverage: Coverage) -> dict[str, int]:
            return {**asdict(coverage), "unjudged": coverage.unjudged}

        each = [{**asdict(reference), **counts(coverage)} for reference, coverage in self.coverage_by_reference()]
        return {**counts(self.coverage), "reference": asdict(self.reference), "references": each}

    def _quantization_dict(self) -> dict[str, Any] | None:
        if self.quantization is None:
            return None
        record = {key: value for key, value in self.quantization.to_dict().items() if key != "tensors"}
        return {
            "reference": "the model on the artifact's dequantized weights",
            **record,
            "bits_per_weight": self.quantization.bits_per_weight(self.dtype),
            "weights_checked": any(c.name == "weights" and c.outcome == PASSED for c in self.artifact_checks),
        }


def not_done(name: str, reason: str) -> Check:
    """Return a check that was not done."""
    return Check(name, NOT_DONE, reason)


def plain(data: Any) -> Any:
    """Convert data for JSON: tuples to lists, numbers that are not finite to null."""
    if isinstance(data, dict):
        return {key: plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [plain(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _one_comparison(item: Comparison) -> dict[str, Any]:
    """Return a comparison as plain data; ``passed`` is None if it was not judged."""
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
        "baseline_error": item.gate.baseline,
        **asdict(item.metrics),
        "logits": None if item.logits is None else asdict(item.logits),
    }


def _curve(item: Comparison) -> dict[str, Any]:
    """Return the errors of a comparison at every position as plain data."""
    where = {"tensor": str(item.tensor), "scenario": item.scenario, "schedule": item.schedule}
    return {**where, "start": item.start, "errors": item.errors.tolist()}
