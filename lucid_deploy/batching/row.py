"""A request that has a row of a batch, and which one goes where there is too little memory for all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from lucid_deploy.batching.request import Request
from lucid_deploy.generation.drafting import Drafter
from lucid_deploy.generation.guide import Guide
from lucid_deploy.generation.sampling import Sampler
from lucid_deploy.runtimes.session import Cache


@dataclass
class Row:
    """A request that has a row.

    Attributes:
        number: The request's.
        cache: While its prompt runs; None once it is among the running rows.
        ids: Tokens in its cache.
        guide: Follows its constraint, if it has one.
        drafter: Guesses its tokens, if the batcher speculates.
        next: The token to run next.
        count: New tokens so far.
        is_new: Whether it has joined the running rows since their last step.
        verified: Whether a step with drafts, its own or of a row beside it, wrote into its cache.
    """

    number: int
    request: Request
    choose: Sampler
    guide: Guide | None
    cache: Cache[Any] | None
    ids: list[int] = field(default_factory=list)
    drafter: Drafter | None = None
    next: int = 0
    count: int = 0
    is_new: bool = False
    verified: bool = False

    @property
    def left(self) -> int:
        """New tokens that may still come."""
        return self.request.max_new_tokens - self.count

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return not self.request.sampling.temperature


def first_to_end(rows: Iterable[Row]) -> int:
    """Return the number of the row that ends first where running rows find too little memory for a step.

    One that has joined them since their last step, which ran without it; else the one with the most tokens, whose cache
    takes the most.
    """
    return max(rows, key=lambda row: (row.is_new, len(row.ids))).number
