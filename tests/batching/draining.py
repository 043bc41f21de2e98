"""Step a batcher until all requests have ended."""

from __future__ import annotations

from lucid_deploy.batching.batcher import Batcher
from lucid_deploy.batching.request import Finished, Token
from tests.generation.store_integrity import check_integrity


def drain(batcher: Batcher, drafted: list[int] | None = None) -> tuple[dict[int, list[int]], dict[int, Finished]]:
    """Return the tokens and the end of each request; append accepted drafts to ``drafted``.

    At the end, no request may still read a stored block.
    """
    tokens: dict[int, list[int]] = {}
    ends: dict[int, Finished] = {}
    while not batcher.idle:
        for event in batcher.step():
            assert event.request not in ends, "an event came after the end of its request"
            if isinstance(event, Token):
                tokens.setdefault(event.request, []).append(event.token)
                if drafted is not None and event.drafted:
                    drafted.append(event.token)
            else:
                ends[event.request] = event
    check_integrity(batcher.store)
    assert not batcher.store.readers
    return tokens, ends
