"""The options of speculative decoding; the command gets what opens the drafters for an artifact."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lucid_deploy.artifact import Artifact
    from lucid_deploy.generation.drafting import MakeDrafter
    from lucid_deploy.generation.speculation import DraftCounts
    from lucid_deploy.runtimes.options import RuntimeOptions
    from lucid_deploy.runtimes.session import Session

_HELP = (
    "Verify several tokens in one step: lookup guesses them from what prompt and answer repeat, draft asks a smaller "
    "model. Answers stay the same but where rounding decides between tokens."
)


@dataclass(frozen=True)
class SpeculationOptions:
    """What was asked for.

    Attributes:
        mode: ``off``, ``lookup`` or ``draft``.
        draft: Artifact of the draft model.
    """

    mode: str
    draft: str | None

    def open(self, artifact: Artifact, runtime: RuntimeOptions) -> MakeDrafter | None:
        """See :func:`~lucid_deploy.generation.drafting.open_drafters`."""
        from lucid_deploy.generation.drafting import open_drafters

        return open_drafters(self.mode, artifact, self.draft, runtime)

    def open_session(self, artifact: Artifact, runtime: RuntimeOptions) -> tuple[Session[Any], MakeDrafter | None]:
        """Open an artifact, ready to verify drafts if that is asked for, and its drafters.

        Raises:
            LucidError: As :meth:`open`, or the session cannot be opened or cannot verify drafts.
        """
        from lucid_deploy.generation.speculation import prepare_speculation
        from lucid_deploy.runtimes import open_session

        drafters = self.open(artifact, runtime)
        session = open_session(artifact, runtime)
        if drafters is not None:
            prepare_speculation(session)
        return session, drafters

    def draft_artifacts(self) -> list[Artifact]:
        """Return the artifact of the draft model, if there is one.

        Raises:
            LucidError: It is no artifact.
        """
        from lucid_deploy.artifact import open_artifact

        return [] if self.draft is None else [open_artifact(self.draft)]

    def check(self, artifact: Artifact) -> None:
        """Refuse what cannot be, before anything is loaded.

        Raises:
            LucidError: As :meth:`open`, or the artifact's layers cannot go back over rejected tokens.
        """
        from lucid_deploy.generation.drafting import check_drafters

        check_drafters(self.mode, artifact, self.draft)


def speculation_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command; it gets ``speculation``."""

    @click.option(
        "--speculate", type=click.Choice(["off", "lookup", "draft"]), default="off", show_default=True, help=_HELP
    )
    @click.option(
        "--draft", metavar="ARTIFACT", help="With --speculate draft: a smaller model with the same tokenizer."
    )
    @functools.wraps(function)
    def command(speculate: str, draft: str | None, **given: Any) -> Any:
        return function(speculation=SpeculationOptions(speculate, draft), **given)

    return command


def drafts_text(counts: DraftCounts) -> str:
    """Say how far drafts were right, within a line."""
    near = f", {counts.near_ties} near ties" if counts.near_ties else ""
    failed = f", {counts.failures} drafters failed" if counts.failures else ""
    return f"{counts.accepted} of {counts.proposed} drafted tokens accepted{near}{failed}"
