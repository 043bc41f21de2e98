"""Verify an artifact: its files, its weights, what it computes, and where errors come from.

What was checked, and what was not and why, is part of the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lucid_deploy.artifact import Artifact, check_hashes
from lucid_deploy.artifact.read import unchanged
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.model.description import summarize
from lucid_deploy.parity.causes.explain import explain
from lucid_deploy.parity.compare import check
from lucid_deploy.parity.options import VerifyOptions, check_tolerance, prompt_ids, text_ids
from lucid_deploy.parity.other_references import OtherReferences, open_references
from lucid_deploy.parity.prepare import prepare
from lucid_deploy.parity.quantization_cost import measure_cost
from lucid_deploy.parity.references import ReferenceModels, find_checkpoint
from lucid_deploy.parity.results import FAILED, PASSED, Check, Verification
from lucid_deploy.parity.stored_files import check_copies, check_genai_settings
from lucid_deploy.parity.stored_weights import check_weights
from lucid_deploy.parity.targets import DEQUANTIZED, CallCounter, Progress, Targets, explained_scenarios
from lucid_deploy.runtimes.layers import Layers
from lucid_deploy.runtimes.session import Session

__all__ = ["Verification", "VerifyOptions", "find_checkpoint", "verify_against", "verify_artifact"]


def verify_artifact(
    artifact: Artifact, options: VerifyOptions | None = None, progress: Progress | None = None
) -> Verification:
    """Check everything about an artifact: its files, its weights, what it computes, and where errors come from.

    A check that fails is a result, not an exception; the checks that rest on it are then not made.

    Args:
        artifact: What to verify.
        options: Against which checkpoint, in which runtime, how much.
        progress: Called with (phase, calls done, calls in all).

    Raises:
        LucidError: It cannot be verified: no checkpoint, another model's, no such runtime, bad options.
        CheckFailed: The artifact is replaced meanwhile.
    """
    with unchanged(artifact):  # a verdict on parts of two artifacts would hold for neither
        return _verify(artifact, options or VerifyOptions(), progress)


def _verify(artifact: Artifact, options: VerifyOptions, progress: Progress | None) -> Verification:
    from lucid_deploy.runtimes import open_session
    from lucid_deploy.runtimes.layers import open_layers

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
    others = open_references(options.golden, options.against, source, artifact.manifest.layers, artifact)
    facts = _facts(artifact, source, options)

    def stopped(*made: Check) -> Verification:
        return Verification(facts, time.monotonic() - started, made)

    files = _check_hashes(artifact, progress)
    if files.outcome == FAILED:
        return stopped(files)
    files = _check_copies(artifact, source, files)
    # Opened before the long run in PyTorch, so that a missing package shows at once.
    candidate = open_session(artifact, options.runtime)
    facts |= {name: value for name, value in candidate.facts().items() if name in facts}
    weights = _check_weights(artifact, source, progress)
    if weights.outcome == FAILED and artifact.manifest.quantization is not None:  # the reference would have them too
        return stopped(files, weights)
    try:
        found = verify_against(
            candidate, source, options, artifact, progress, lambda: open_layers(candidate, artifact), others
        )
    except CheckFailed as failure:  # shapes that are not the model's, or a model that does not fit into the type
        return stopped(files, weights, Check("tensors", FAILED, str(failure)))
    return replace(found, facts=facts, seconds=time.monotonic() - started, artifact_checks=(files, weights))


def verify_against(
    candidate: Session[Any],
    source: Checkpoint,
    options: VerifyOptions | None = None,
    artifact: Artifact | None = None,
    progress: Progress | None = None,
    layers: Callable[[], Layers] | None = None,
    others: OtherReferences | None = None,
) -> Verification:
    """Compare a session with its checkpoint: parity and causes, without the checks of an artifact's files.

    Args:
        candidate: The session under test.
        source: The checkpoint.
        options: How much to run; those that say how to open an artifact do not count.
        artifact: What the session runs, if it is known; None: one that is not quantized.
        progress: Called with (phase, calls done, calls in all).
        layers: Opens the candidate's layers; raises LucidError with the reason if they cannot be run by themselves.
            None: no causes are looked for.
        others: Other implementations to compare with; None: those that the options name.
    """
    options = options or VerifyOptions()
    if others is None:
        others = open_references(options.golden, options.against, source, candidate.layers, artifact)
    models = ReferenceModels(candidate, source, artifact, progress)
    targets = prepare(
        models.baseline,
        models.reference,
        seed=options.seed,
        prompt=prompt_ids(options.prompt, artifact),
        embeddings=source.tensor("model.embed_tokens.weight").float().numpy(),
        rounded=models.rounded,
        workload=options.workload,
        more=others.scenarios(candidate.config, options.workload),
        progress=progress,
    )
    targets = others.add_to(targets, models.in_precision, progress)
    if options.tolerance is not None:
        targets = targets.with_tolerance(options.tolerance)
    found = check(candidate, targets, progress=progress)
    if artifact is not None and models.quantized:
        cost = measure_cost(models.original, candidate, targets, progress)
        found = replace(found, reference=DEQUANTIZED, quantization=artifact.manifest.quantization, cost=cost)
    return _explained(found, targets, models, options, layers)


def _explained(
    found: Verification,
    targets: Targets,
    models: ReferenceModels,
    options: VerifyOptions,
    opener: Callable[[], Layers] | None,
) -> Verification:
    """Add the perplexity, if there is a text, and after a failure, or if asked for, the causes."""
    from lucid_deploy.runtimes.torch.layers import TorchLayers

    text = text_ids(options.text, models.artifact, options.text_tokens)
    # A failure against another implementation alone has no cause in the layers: the candidate agrees with ours.
    wrong = found.own_failure is not None or bool(found.unproven)
    if opener is None or not (options.explain or wrong):
        opener = None
        if text is None:
            return found
    layers, unavailable = None, None
    if opener is not None:
        try:
            layers = opener()
        except LucidError as error:
            unavailable = str(error)
    failing = None if found.own_failure is None else found.own_failure.scenario
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
    return replace(found, explanation=explanation)


def _check_hashes(artifact: Artifact, progress: Progress | None) -> Check:
    def counted(done: int, total: int) -> None:
        if progress is not None:
            progress("Files: sha256", done, total)

    try:
        check_hashes(artifact, counted)
    except CheckFailed as failure:
        return Check("files", FAILED, str(failure))
    return Check("files", PASSED, f"sha256 and size of {len(artifact.manifest.files)} files")


def _check_copies(artifact: Artifact, source: Checkpoint, files: Check) -> Check:
    """Add to the check of files whether those that no run reads are right; nothing that is computed rests on them."""
    try:
        count = check_copies(artifact, source.directory)
        has_settings = check_genai_settings(artifact)
    except CheckFailed as failure:
        return Check("files", FAILED, str(failure))
    copies = f", of which {count} are equal to the checkpoint's" if count else ""
    settings = "; genai_config.json is what export writes" if has_settings else ""
    return replace(files, detail=f"{files.detail}{copies}{settings}")


def _check_weights(artifact: Artifact, source: Checkpoint, progress: Progress | None) -> Check:
    meter = CallCounter(progress, "Weights: every element", len(source.stored_shapes()))
    try:
        return Check("weights", PASSED, check_weights(artifact, source, meter))
    except CheckFailed as failure:
        return Check("weights", FAILED, str(failure))


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
