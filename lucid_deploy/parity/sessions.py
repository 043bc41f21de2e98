"""Compare one session with others, of any runtime and without an artifact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lucid_deploy.model.scenarios import Schedule
from lucid_deploy.parity.causes.conditioning import conditioning
from lucid_deploy.parity.measure.candidate import measure
from lucid_deploy.parity.measure.derive_targets import prepare
from lucid_deploy.parity.measure.extent import FULL, VerificationExtent
from lucid_deploy.parity.measure.progress import Progress
from lucid_deploy.parity.measure.source import Source, opened
from lucid_deploy.parity.measure.targets import Targets
from lucid_deploy.parity.show.report import Report, environment
from lucid_deploy.runtimes.session import Array, Session


def verify(
    candidate: Source,
    baseline: Source,
    reference: Source,
    *,
    steps: int | None = None,
    seed: int = 0,
    prompt: Array | None = None,
    embeddings: Array | None = None,
    rounded: Source | None = None,
    extent: VerificationExtent = FULL,
    progress: Progress | None = None,
) -> Report:
    """Check that a candidate computes what PyTorch computes.

    Args:
        candidate: The session under test, or a function that opens it.
        baseline: As :func:`prepare`, and so are all others.

    Returns:
        The report; a failed gate is a result in it, not an exception.

    Raises:
        LucidError, CheckFailed, ValueError: As :func:`prepare` and :func:`check`.
    """
    targets = prepare(
        baseline,
        reference,
        steps=steps,
        seed=seed,
        prompt=prompt,
        embeddings=embeddings,
        rounded=rounded,
        extent=extent,
        progress=progress,
    )
    return check(candidate, targets, progress=progress)


def check(
    candidate: Source,
    targets: Targets,
    *,
    schedules: Sequence[Schedule] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Hold a candidate against targets; arguments and errors as :func:`~.measure.candidate.measure`."""
    session: Session[Any] = opened(candidate)
    measured = measure(session, targets, schedules=schedules, progress=progress)
    heads = tuple(conditioning(targets, session.config, session.layers, progress))
    return Report(**vars(measured), environment=environment(session.capabilities.packages), heads=heads)
