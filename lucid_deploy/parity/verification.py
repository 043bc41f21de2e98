"""Verify an artifact: all that there is to check, in one call.

Files first, then whether it fits into memory, the weights element by element, parity of logits and caches with PyTorch,
and causes. What was checked, and what was not and why, is part of the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lucid_deploy.artifact import Artifact, check_hashes
from lucid_deploy.artifact.quantization_method import AWQ, STORED
from lucid_deploy.artifact.watch import unchanged
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.model.summary import summarize
from lucid_deploy.parity.causes.explain import explain
from lucid_deploy.parity.estimate import planned_phases
from lucid_deploy.parity.measure import memory, phases
from lucid_deploy.parity.measure.copied_files import check_copies
from lucid_deploy.parity.measure.derive_targets import prepare
from lucid_deploy.parity.measure.genai_settings import check_genai_settings
from lucid_deploy.parity.measure.measurement import DEQUANTIZED
from lucid_deploy.parity.measure.plain_weights import check_plain_weights, plain_names
from lucid_deploy.parity.measure.plan import PhaseTracker, VerificationProgress
from lucid_deploy.parity.measure.progress import CallCounter, Progress
from lucid_deploy.parity.measure.quantization import check_weights, measure_cost
from lucid_deploy.parity.measure.speed import measure_speed
from lucid_deploy.parity.measure.targets import Targets, check_tolerance, explained_scenarios
from lucid_deploy.parity.memory_estimate import check_memory, memory_parts
from lucid_deploy.parity.options import VerifyOptions
from lucid_deploy.parity.outside import OutsideReferences, open_references
from lucid_deploy.parity.references import ReferenceModels, find_checkpoint
from lucid_deploy.parity.sessions import check
from lucid_deploy.parity.show.checks import FAILED, PASSED, Check, not_done
from lucid_deploy.parity.show.report import Report
from lucid_deploy.parity.tokens import prompt_ids, text_ids
from lucid_deploy.runtimes.layers import Layers
from lucid_deploy.runtimes.session import Session

__all__ = ["Verification", "VerifyOptions", "find_checkpoint", "verify_against", "verify_artifact"]

AFTER_FILES = "a check before it failed"


@dataclass(frozen=True)
class Verification:
    """The result of verifying an artifact.

    Attributes:
        facts: About the artifact: ``artifact``, ``checkpoint``, ``device``, ``provider``, ``kernels``, ``model`` (its
            configuration), ``cache``, ``files``, ``bytes``, ``exported_with`` (versions).
        checks: Every check there is, made or not.
        report: What the comparison found; None if a check before it failed.
        seconds: How long it took.
    """

    facts: dict[str, Any]
    checks: tuple[Check, ...]
    report: Report | None
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether everything that was checked is right, and the comparison was made."""
        return self.report is not None and all(check.outcome != FAILED for check in self.checks)

    @property
    def failure(self) -> str:
        """The first failure in one line; empty if there is none."""
        if self.report is not None and not self.report.passed:
            return f"{self.facts['artifact']} failed: {self.report.verdict()} {self.report.cause()}".rstrip()
        return next((check.detail for check in self.checks if check.outcome == FAILED), "")

    def raise_if_failed(self) -> Verification:
        """Return the verification if it passed.

        Raises:
            CheckFailed: Something failed; the first failure is the message.
        """
        if not self.passed:
            raise CheckFailed(self.failure)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        facts = {name: self.facts[name] for name in ("artifact", "checkpoint", "device", "provider", "kernels")}
        found = {} if self.report is None else self.report.to_dict()
        return {
            **facts,
            "hashes_checked": any(check.name == "files" and check.done for check in self.checks),
            "seconds": round(self.seconds, 1),
            **found,
            "passed": self.passed,
            "verdict": found.get("verdict", self.failure),
            "checks": [check.to_dict() for check in self.checks],
        }


def verify_artifact(
    artifact: Artifact,
    options: VerifyOptions | None = None,
    progress: Callable[[VerificationProgress], None] | None = None,
) -> Verification:
    """Check everything about an artifact: its files, its weights, what it computes, and where errors come from.

    A check that fails is a result, not an exception; the checks that rest on it are then not made.

    Args:
        artifact: What to verify.
        options: Against which checkpoint, in which runtime, how much.
        progress: Called with every step: phase, calls done, and an estimate of the time that is left.

    Raises:
        LucidError: It cannot be verified: no checkpoint, another model's, too little memory, no such runtime, bad
            options.
        CheckFailed: The artifact is replaced meanwhile.
    """
    with unchanged(artifact):  # a verdict on parts of two would be on neither
        return _verify(artifact, options or VerifyOptions(), progress)


def _verify(
    artifact: Artifact, options: VerifyOptions, progress: Callable[[VerificationProgress], None] | None
) -> Verification:
    from lucid_deploy.runtimes import open_session

    started = time.monotonic()
    if options.seed < 0:
        raise LucidError(f"The seed must be 0 or more, not {options.seed}.")
    if options.tolerance is not None:
        check_tolerance(options.tolerance)
    source = find_checkpoint(artifact, options.checkpoint)
    options = replace(
        options,
        prompt=prompt_ids(options.prompt, artifact),
        text=text_ids(options.text, artifact, options.text_tokens),
    )
    outside = open_references(options.golden, options.against, source, artifact.manifest.layers, artifact)
    fits = _check_memory(artifact, source, options, outside)
    plan = PhaseTracker(planned_phases(artifact, source, options, measure_speed(), outside), progress)
    files = _check_files(artifact, plan.update)
    facts = _facts(artifact, source, options)
    if files.outcome == FAILED:
        return _stopped(facts, (files, fits), started)
    files = _check_copies(artifact, source, files)
    # Opened before the long run in PyTorch, so that a missing package shows at once.
    candidate = open_session(artifact, options.runtime)
    facts |= {name: value for name, value in candidate.facts().items() if name in facts}
    weights = _check_weights(artifact, source, plan.update)
    if weights.outcome == FAILED and artifact.manifest.quantization is not None:  # they are in the reference too
        return _stopped(facts, (files, fits, weights), started)
    layers = _layers_of(candidate, artifact)
    try:
        report = verify_against(candidate, source, options, artifact, plan.update, layers, outside)
    except CheckFailed as failure:  # shapes that are not the model's, or a model that does not fit into the type
        return _stopped(facts, (files, fits, weights, Check("tensors", FAILED, str(failure))), started)
    report = replace(report, before=(files, fits, weights))
    return Verification(facts, report.checks, report, time.monotonic() - started)


def verify_against(
    candidate: Session[Any],
    source: Checkpoint,
    options: VerifyOptions | None = None,
    artifact: Artifact | None = None,
    progress: Progress | None = None,
    layers: Callable[[], Layers] | None = None,
    outside: OutsideReferences | None = None,
) -> Report:
    """Hold a session against its checkpoint: parity and causes, none of the checks that an artifact is needed for.

    Args:
        candidate: The session under test.
        source: The checkpoint.
        options: How much to run; what says how to open an artifact does not count.
        artifact: What the session runs, if it is known; without it, it is taken for one that is not quantized.
        progress: Called with (what is being done, done, in all).
        layers: Opens the candidate's layers; raises LucidError with the reason if they cannot be run by themselves.
            None: no causes are looked for.
        outside: What else it is held against; None: what the options name.
    """
    options = options or VerifyOptions()
    if outside is None:
        outside = open_references(options.golden, options.against, source, candidate.layers, artifact)
    models = ReferenceModels(candidate, source, artifact, progress)
    targets = prepare(
        models.baseline,
        models.reference,
        seed=options.seed,
        prompt=prompt_ids(options.prompt, artifact),
        embeddings=source.tensor("model.embed_tokens.weight").float().numpy(),
        rounded=models.rounded,
        extent=options.extent,
        more=outside.scenarios(candidate.config, options.extent),
        progress=progress,
    )
    targets = outside.add_to(targets, models.in_precision, progress)
    if options.tolerance is not None:
        targets = targets.with_tolerance(options.tolerance)
    report = check(candidate, targets, progress=progress)
    if artifact is not None and models.quantized:
        cost = measure_cost(models.original, candidate, targets, progress)
        report = replace(report, reference=DEQUANTIZED, quantization=artifact.manifest.quantization, cost=cost)
    return _look_closer(report, targets, models, options, layers)


def _look_closer(
    report: Report,
    targets: Targets,
    models: ReferenceModels,
    options: VerifyOptions,
    opener: Callable[[], Layers] | None,
) -> Report:
    """Add to a report what was asked for and, after a failure, the causes."""
    from lucid_deploy.runtimes.torch.layers import TorchLayers

    text = text_ids(options.text, models.artifact, options.text_tokens)
    # Against others' numbers our own layers explain nothing: they are what the candidate agrees with.
    wrong = report.own_failure is not None or bool(report.unproven)
    causes = opener is not None and (options.explain or wrong)
    if not causes and text is None:
        return report
    layers, unavailable = None, None
    if causes and opener is not None:
        try:
            layers = opener()
        except LucidError as error:  # a reason, which the report gives
            unavailable = str(error)
    failing = None if report.own_failure is None else report.own_failure.scenario
    explanation = explain(
        explained_scenarios(targets, failing),
        models.candidate,
        layers,
        lambda: TorchLayers(models.baseline().model),
        lambda: TorchLayers(models.reference().model),
        unavailable=unavailable,
        tolerance=targets.tolerance,
        text=text,
        progress=models.progress,
    )
    return replace(report, explanation=explanation)


def _layers_of(candidate: Session[Any], artifact: Artifact) -> Callable[[], Layers]:
    from lucid_deploy.runtimes.open_layers import open_layers

    return lambda: open_layers(candidate, artifact)


def _check_memory(artifact: Artifact, source: Checkpoint, options: VerifyOptions, outside: OutsideReferences) -> Check:
    parts, free = memory_parts(artifact, source, options, outside), memory.available()
    check_memory(artifact, parts, options.explain, free)
    needed = f"about {sum(parts.values()) / 1e9:.1f} GB beyond mapped files"
    if free is None:
        return not_done("memory", f"it may take {needed}; this system does not say how much is free")
    return Check("memory", PASSED, f"{needed}, {free / 1e9:.1f} GB were free")


def _check_files(artifact: Artifact, progress: Progress) -> Check:
    try:
        check_hashes(artifact, lambda done, total: progress(phases.FILES, done, total))
    except CheckFailed as failure:
        return Check("files", FAILED, str(failure))
    return Check("files", PASSED, f"sha256 and size of {len(artifact.manifest.files)} files")


def _check_copies(artifact: Artifact, source: Checkpoint, files: Check) -> Check:
    """Add to the check of files whether those that no run reads are right; what is computed rests on none."""
    try:
        count = check_copies(artifact, source.directory)
        written = check_genai_settings(artifact)
    except CheckFailed as failure:
        return Check("files", FAILED, str(failure))
    copies = f", of which {count} are equal to the checkpoint's" if count else ""
    settings = "; genai_config.json is what export writes" if written else ""
    return replace(files, detail=f"{files.detail}{copies}{settings}")


def _check_weights(artifact: Artifact, source: Checkpoint, progress: Progress) -> Check:
    quantization = artifact.manifest.quantization
    try:
        if quantization is None:
            meter = CallCounter(progress, phases.WEIGHTS, len(plain_names(artifact, source)))
            count = check_plain_weights(artifact, source, tick=meter.tick)
            return Check(
                "weights", PASSED, f"every element of {count} is the checkpoint's in {artifact.manifest.dtype}"
            )
        check_weights(artifact, source, progress)
    except CheckFailed as failure:
        return Check("weights", FAILED, str(failure))
    chosen = len(quantization.method.tensors)
    if quantization.method.name == STORED:
        return Check(
            "weights", PASSED, f"{len(quantization.tensors)} are the checkpoint's numbers exactly, others equal"
        )
    nearest = len(quantization.tensors) - chosen
    found = [f"every element of {nearest} quantized weights is within half a step"] if nearest else []
    if chosen:
        found.append(f"{chosen} whose numbers {quantization.method.name} chose are as far off as recorded")
    others = "others are equal but for inputs' scales" if quantization.method.name == AWQ else "others are equal"
    return Check("weights", PASSED, f"{', '.join(found)}, {others}")


def _stopped(facts: dict[str, Any], made: tuple[Check, ...], started: float) -> Verification:
    """Return a verification that ended before anything was compared."""
    names = [check.name for check in made]
    missing = [name for name in ("weights", "tensors", "free generation", "causes") if name not in names]
    checks = (*made, *(not_done(name, AFTER_FILES) for name in missing))
    return Verification(facts, checks, None, time.monotonic() - started)


def _facts(artifact: Artifact, source: Checkpoint, options: VerifyOptions) -> dict[str, Any]:
    manifest = artifact.manifest
    return {
        "artifact": str(artifact.directory),
        "checkpoint": str(source.directory),
        "device": options.runtime.device,
        "provider": None,
        "kernels": None,
        "model": manifest.config.to_dict(),
        "summary": summarize(manifest.config),
        "cache": f"{manifest.cache}, {manifest.cache_dtype}",
        "files": len(manifest.files),
        "bytes": sum(int(item["size"]) for item in manifest.files.values()),
        "exported_with": manifest.versions,
    }
