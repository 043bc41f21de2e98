"""From ``--speculate`` and ``--draft`` to what makes a drafter for every text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.drafting import LookupDrafter, MakeDrafter
from lucid_deploy.generation.speculation import MODES
from lucid_deploy.runtimes.open import open_session
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.runtimes.several import layers_obstacle


def open_drafters(
    mode: str, artifact: Artifact, draft: str | Path | None = None, options: RuntimeOptions | None = None
) -> MakeDrafter | None:
    """Return what makes a drafter for each text; None without speculation.

    Args:
        mode: One of :data:`~lucid_deploy.generation.speculation.MODES`.
        artifact: The one that answers.
        draft: Artifact of the draft model, with ``draft`` alone.
        options: How the draft model is run; an ablation is the other model's alone.

    Raises:
        LucidError: An unknown mode, a draft model without the mode or the other way round, or one that does not fit or
            cannot be opened.
    """
    opened = check_drafters(mode, artifact, draft)
    if opened is not None:
        from lucid_deploy.generation.draft_model import ModelDrafters

        try:
            session = open_session(opened, replace(options or RuntimeOptions(), ablate=None))
        except LucidError as error:
            raise type(error)(f"--draft {draft} cannot be opened: {error}") from error
        return ModelDrafters(session, artifact.config.vocab_size)
    return None if mode == "off" else LookupDrafter


def check_drafters(mode: str, artifact: Artifact, draft: str | Path | None = None) -> Artifact | None:
    """Check what :func:`open_drafters` takes, and that the artifact's layers can go back; return the draft model's.

    Raises:
        LucidError: As :func:`open_drafters`, or a layer that cannot go back.
    """
    if mode not in MODES:
        raise LucidError(f"speculate must be {', '.join(MODES)}, not {mode!r}.")
    if (draft is not None) != (mode == "draft"):
        raise LucidError("--speculate draft and --draft ARTIFACT go together: give both, or neither.")
    if mode == "off":
        return None
    obstacle = layers_obstacle(artifact.manifest.layers)
    if obstacle is not None:
        raise LucidError(f"--speculate cannot be used with {artifact.directory}: {obstacle}. Leave it out.")
    if draft is None:
        return None
    from lucid_deploy.generation.draft_model import check_draft

    opened = open_artifact(draft)
    check_draft(artifact, opened)
    return opened
