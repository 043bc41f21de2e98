"""Choosing the tokens of a batch's rows from logits, one by one or along drafts, and where a row ends with one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lucid_deploy.batching.drafts import follow
from lucid_deploy.batching.log_probabilities import log_probabilities
from lucid_deploy.batching.request import Event, Finished, Token
from lucid_deploy.batching.row import Row
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.sampling import NoTokenLeft
from lucid_deploy.generation.speculation import DraftCounts, is_near_tie, near_share
from lucid_deploy.runtimes.session import Array, Session
from lucid_deploy.shortages import TooLittleMemory, memory_errors_told


class Choosing:
    """Chooses tokens; what comes out is added to lists of events.

    Args:
        session: Whose logits they are.
        counts: Gets near ties, and how far drafts were right.
        relieved: Returns the end of a request, by its number, for which there is too little memory.

    Attributes:
        tokens: Chosen so far, over all rows.
    """

    def __init__(
        self, session: Session[Any], counts: DraftCounts, relieved: Callable[[int, TooLittleMemory], Finished]
    ) -> None:
        self._session, self._counts, self._relieved = session, counts, relieved
        self._near = near_share(session.dtype, session.cache_dtype, session.rounded_inputs)
        self.tokens = 0

    def follow(self, row: Row, drafts: list[int], logits: Array, events: list[Event]) -> tuple[int, Finished | None]:
        """Choose a row's tokens while its drafts are right; return how many that ran count, and the end if it ends."""
        row.verified |= bool(drafts)
        end: Finished | None = None

        def choose(logits: Array, draft: int | None) -> bool:
            nonlocal end
            end = self.choose(row, logits, events, draft)
            return end is None

        return follow(row, drafts, logits, choose, self._counts), end

    def choose(self, row: Row, logits: Array, events: list[Event], draft: int | None = None) -> Finished | None:
        """Choose a row's next token; return the end if the row ends with it."""
        try:
            return self._chosen(row, logits, events, draft)
        except NoTokenLeft as error:
            return Finished(row.number, "refused", str(error))
        except TooLittleMemory as error:
            return self._relieved(row.number, error)
        except LucidError as error:
            return Finished.of_error(row.number, error)

    @memory_errors_told()
    def _chosen(self, row: Row, logits: Array, events: list[Event], draft: int | None) -> Finished | None:
        """As :meth:`choose`, which tells errors. Near ties after verifying steps count."""
        allowed = None if row.guide is None else row.guide.allowed()
        if row.guide is not None and allowed is None:  # the text is complete
            return Finished(row.number, "eos")
        token = row.choose(logits, allowed)
        request = row.request
        if row.verified and row.greedy:
            choose = row.choose
            self._counts.near_ties += is_near_tie(choose.chosen_from, logits, self._near, choose.slopes)
        if request.stop_at_eos and token in self._session.config.eos_token_ids:
            return Finished(row.number, "eos")
        row.next, row.count = token, row.count + 1
        if row.guide is not None:
            row.guide.advance(token)  # its mask is computed while the model runs
        if row.drafter is not None:
            row.drafter.add([token])
        self.tokens += 1
        found = log_probabilities(logits, token, request.top_logprobs)
        events.append(Token(row.number, token, *found, drafted=token == draft))
        if row.count == request.max_new_tokens:
            complete = row.guide is not None and row.guide.complete
            return Finished(row.number, "eos" if complete else "length")
        limit = self._session.context_limit
        return Finished(row.number, "context") if limit is not None and len(row.ids) >= limit else None
