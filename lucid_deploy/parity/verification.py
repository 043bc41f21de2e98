"""Verify an artifact in steps: its files, its weights, what it computes, and where errors start."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from lucid_deploy.artifact import Artifact
from lucid_deploy.artifact.adapters import BASE
from lucid_deploy.artifact.read import unchanged
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.model.description import summarize
from lucid_deploy.parity.causes import Explanation, explain
from lucid_deploy.parity.compare import check
from lucid_deploy.parity.gate import Comparison, Coverage
from lucid_deploy.parity.golden import add_golden
from lucid_deploy.parity.options import Given, VerifyOptions, read_given
from lucid_deploy.parity.perplexity import cost_of, windows
from lucid_deploy.parity.progress import Progress
from lucid_deploy.parity.references import ReferenceModels, find_checkpoint
from lucid_deploy.parity.results import FAILED, PASSED, Check, Verification, not_done
from lucid_deploy.parity.stored_files import check_files
from lucid_deploy.parity.stored_weights import check_weights
from lucid_deploy.parity.targets import DEQUANTIZED, Targets, explained_scenarios, prepare
from lucid_deploy.runtimes.open import open_session, runnable_forms
from lucid_deploy.runtimes.session import Session

__all__ = ["Verification", "VerifyOptions", "verify_against", "verify_artifact"]


def verify_artifact(
    artifact: Artifact, options: VerifyOptions | None = None, progress: Progress | None = None
) -> Verification:
    """Check an artifact's files, weights and results; find where errors start if these fail or are not proven.

    A failed check is part of the result, not an exception; checks that depend on it are skipped. ``progress`` is called
    with (phase, done, total), counted in bytes, weights or calls of a model.

    Raises:
        LucidError: The checkpoint is missing or of another model, the runtime is unavailable, or options are invalid.
        CheckFailed: The artifact was replaced during the verification, or the runtime cannot load its graphs.
    """
    with unchanged(artifact):  # else a verdict on parts of two artifacts would be true of neither
        return _verify(artifact, options or VerifyOptions(), progress)


def _verify(artifact: Artifact, options: VerifyOptions, progress: Progress | None) -> Verification:
    started = time.monotonic()
    if options.seed < 0:
        raise LucidError(f"The seed must be 0 or more, not {options.seed}.")
    source = find_checkpoint(artifact, options.checkpoint, options.trust_remote_code)
    given = read_given(options, source, artifact.manifest.layers, artifact)
    facts = _facts(artifact, source, options)

    def stopped(*made: Check) -> Verification:
        return Verification(facts, time.monotonic() - started, made)

    files, is_readable = check_files(artifact, source.directory, progress)
    if not is_readable:
        return stopped(files)
    # Open it before the long run in PyTorch, so that a missing package is reported at once.
    candidate = open_session(artifact, options.runtime)
    forms, form_checks = _other_forms(artifact, options, candidate.capabilities.runs_graphs)
    facts |= {name: value for name, value in candidate.facts().items() if name in facts}
    weights = check_weights(artifact, source, progress)
    if weights.outcome == FAILED and artifact.manifest.quantization is not None:  # the reference runs on these weights
        return stopped(files, weights)
    models = ReferenceModels(candidate, source, artifact, progress, given.adapter)
    try:
        found, targets = _compare(models, options, given)
        compared = [_check_form(name, form, options, targets, progress) for name, form in forms.items()]
        # If only the comparison with another implementation failed, no layer is wrong: the candidate agrees with ours.
        if options.explain or found.own_failure is not None or found.not_proven:
            found = replace(found, explanation=_explain(models, artifact, targets, found.own_failure))
    except CheckFailed as failure:  # such as a cache of wrong shapes, or values beyond the type's range
        return stopped(files, weights, Check("tensors", FAILED, str(failure)))
    return replace(
        found,
        facts=facts,
        seconds=time.monotonic() - started,
        artifact_checks=(files, weights),
        form_checks=(*compared, *form_checks),
    )


def _other_forms(
    artifact: Artifact, options: VerifyOptions, runs_graphs: bool
) -> tuple[dict[str, Artifact], tuple[Check, ...]]:
    """Choose which other forms of the graphs to compare beside the preferred one; none if the runtime runs no graphs.

    Returns:
        The artifact in each form to compare, by the form's name; and a check with the reason for each form left out.
    """
    if not artifact.manifest.forms or not runs_graphs:
        return {}, ()
    compared, *others = runnable_forms(artifact, options.runtime)
    forms = {each.form: artifact.form(each.cache, each.inline) for each in others}
    reasons = dict.fromkeys((each.form for each in artifact.manifest.each_form()), "this runtime does not run them")
    del reasons[compared.form]
    if options.quick:
        reasons |= dict.fromkeys(forms, "left out by --quick")
        forms = {}
    return forms, tuple(not_done(f"{name} graphs", why) for name, why in reasons.items() if name not in forms)


def verify_against(
    candidate: Session[Any],
    source: Checkpoint,
    options: VerifyOptions | None = None,
    artifact: Artifact | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Compare a session with its checkpoint, without causes, other forms, and checks of stored files and weights.

    Args:
        options: ``checkpoint``, ``explain``, ``trust_remote_code`` and all of ``runtime`` but the adapter are ignored.
        artifact: The session's artifact, for its tokenizer, adapters and quantization; None: it has none of these.
    """
    options = options or VerifyOptions()
    given = read_given(options, source, candidate.layers, artifact)
    return _compare(ReferenceModels(candidate, source, artifact, progress, given.adapter), options, given)[0]


def _compare(models: ReferenceModels, options: VerifyOptions, given: Given) -> tuple[Verification, Targets]:
    """Derive the targets and compare the candidate with them; compute the perplexity of the text if one is given."""
    candidate, source, progress, golden = models.candidate, models.source, models.progress, given.golden
    targets = prepare(
        models.baseline,
        models.reference,
        seed=options.seed,
        prompt=given.prompt,
        embeddings=source.tensor("model.embed_tokens.weight").float().numpy(),
        rounded=models.rounded,
        workload=options.workload,
        more=[] if golden is None else golden.scenarios(candidate.config.max_position_embeddings, options.workload),
        progress=progress,
    )
    if golden is not None:
        targets = add_golden(targets, golden, models.in_precision, progress)
    found = check(candidate, targets, progress=progress)
    if models.artifact is not None and models.quantized:
        found = replace(found, reference=DEQUANTIZED, quantization=models.artifact.manifest.quantization)
    if given.text is not None:
        pieces = windows(given.text, candidate.config.max_position_embeddings)
        found = replace(found, text=cost_of(models, pieces, "Perplexity of the text"))
    return found, targets


def _explain(models: ReferenceModels, artifact: Artifact, targets: Targets, failure: Comparison | None) -> Explanation:
    """Find the layer in which errors start, or say why the candidate's layers cannot be run one by one."""
    from lucid_deploy.runtimes.layers import open_layers

    try:
        opened = open_layers(models.candidate, artifact)
    except LucidError as error:
        return Explanation((), unavailable=str(error))
    return explain(
        explained_scenarios(targets, None if failure is None else failure.scenario),
        opened,
        lambda: models.layers(models.baseline),
        lambda: models.layers(models.reference),
        progress=models.progress,
    )


def _check_form(
    name: str, form: Artifact, options: VerifyOptions, targets: Targets, progress: Progress | None
) -> Check:
    """Compare another form of the graphs with the same targets; return the resulting check."""
    found = check(open_session(form, options.runtime), targets, progress=progress)
    total = Coverage.of(found.comparisons).total
    if found.first_failure is None:
        return Check(f"{name} graphs", PASSED, f"{total:,} comparisons within the same gates")
    return Check(f"{name} graphs", FAILED, f"The {name} graphs failed: {found.verdict()}")


def _facts(artifact: Artifact, source: Checkpoint, options: VerifyOptions) -> dict[str, Any]:
    manifest, adapter = artifact.manifest, options.runtime.adapter
    words = (
        "" if manifest.adapters is None else ", without adapter" if adapter in (None, BASE) else f", adapter {adapter}"
    )
    return {
        "artifact": str(artifact.directory),
        "checkpoint": str(source.directory),
        "device": options.runtime.device,
        "provider": None,
        "kernels": None,
        "model": manifest.config.to_dict(),
        "summary": summarize(manifest.config) + words,
        "cache": f"{' and '.join(sorted({each.cache for each in manifest.each_form()}))}, {manifest.cache_dtype}",
        "files": len(manifest.files),
        "bytes": sum(int(item["size"]) for item in manifest.files.values()),
        "exported_with": manifest.versions,
    }
