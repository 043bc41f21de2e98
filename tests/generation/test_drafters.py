"""Which modes there are, and what they need."""

from __future__ import annotations

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.generation.draft_model import ModelDrafter
from lucid_deploy.generation.drafters import open_drafters
from lucid_deploy.generation.drafting import LookupDrafter


def test_every_mode_has_its_drafter(exported):
    artifact = exported()[1]
    assert open_drafters("off", artifact) is None
    lookup = open_drafters("lookup", artifact)
    assert isinstance(lookup(), LookupDrafter) and lookup() is not lookup()
    draft = open_drafters("draft", artifact, artifact.directory)
    assert isinstance(draft(), ModelDrafter) and draft() is not draft()


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
