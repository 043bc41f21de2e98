"""Which modes there are, and what they need."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.generation.drafting import LookupDrafter, ModelDrafter, open_drafters
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.options import RuntimeOptions


def test_every_mode_has_its_drafter(exported):
    artifact = exported()[1]
    assert open_drafters("off", artifact) is None
    lookup = open_drafters("lookup", artifact)
    assert isinstance(lookup(), LookupDrafter) and lookup() is not lookup()
    draft = open_drafters("draft", artifact, artifact.directory)
    assert isinstance(draft(), ModelDrafter) and draft() is not draft()


def test_the_draft_model_runs_whole_and_is_closed(exported, monkeypatch):
    artifact, closed = exported()[1], []
    made = open_drafters("draft", artifact, artifact.directory, RuntimeOptions("torch", ablate="preconditioner"))
    plain, logits = open_session(artifact, "torch"), []
    for session in (made.session, plain):
        logits.append(session.prefill(np.array([[5, 6, 5, 7]]), session.empty_cache(1)))
    assert np.array_equal(*logits)
    monkeypatch.setattr(made.session, "close", lambda: closed.append(True))
    made.close()
    assert closed == [True]


def test_errors_say_that_the_draft_model_cannot_be_opened(exported):
    artifact = exported()[1]
    with pytest.raises(LucidError, match=f"--draft {artifact.directory} cannot be opened: .*kernels"):
        open_drafters("draft", artifact, artifact.directory, RuntimeOptions("torch", kernels="library"))


@pytest.mark.parametrize(
    ("mode", "draft", "message"),
    [
        ("always", None, "speculate must be off, lookup, draft, not 'always'"),
        ("draft", None, "go together"),
        ("lookup", "x", "go together"),
        ("off", "x", "go together"),
        ("draft", "nowhere", "There is no artifact at nowhere"),
    ],
)
def test_what_does_not_go(exported, mode, draft, message):
    with pytest.raises(LucidError, match=message):
        open_drafters(mode, exported()[1], draft)
