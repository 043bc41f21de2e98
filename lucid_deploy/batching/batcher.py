"""Continuous batching over any session: requests start and finish at any step, prompts are prefilled between steps."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lucid_deploy.batching.drafts import follow, propose
from lucid_deploy.batching.log_probabilities import log_probabilities
from lucid_deploy.batching.request import Finished, Mark, Request, Token
from lucid_deploy.batching.rows import make_rows
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.drafting import Drafter, MakeDrafter
from lucid_deploy.generation.guide import Guide, GuideFactory
from lucid_deploy.generation.prefix_store import PrefixStore
from lucid_deploy.generation.sampling import NoTokenLeft, Sampler
from lucid_deploy.generation.speculation import DraftCounts, is_near_tie, near_share, prepare_speculation
from lucid_deploy.runtimes.session import Array, Cache, Session

Event = Token | Finished


@dataclass
class _Row:
    """A request that has a row.

    Attributes:
        number: The request's.
        cache: While its prompt runs; None once it is among the running rows.
        ids: Tokens in its cache.
        guide: Follows its constraint, if it has one.
        drafter: Guesses its tokens, if the batcher speculates.
        next: The token to run next.
        count: New tokens so far.
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
    verified: bool = False

    @property
    def left(self) -> int:
        """New tokens that may still come."""
        return self.request.max_new_tokens - self.count

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return not self.request.sampling.temperature


class Batcher:
    """Runs many requests at once. Not thread-safe: one thread calls it.

    Args:
        session: Any runtime. Best is onnxruntime with a static cache, which copies no other rows when a request
            starts or finishes.
        rows: Most requests that run at once; the others wait in order of arrival.
        prefill_chunk: Most prompt tokens run in a step, so that running rows never wait for longer than that; None:
            one whole prompt a step. Short prompts share a step and are cut where it is full. Where something is rounded
            (:attr:`Session.rounds`) a prompt is cut at multiples of this number only, as it is alone.
        guides: Holds answers to constraints; None: requests have none.
        prefix_tokens: Budget in tokens of a :class:`~lucid_deploy.generation.prefix_store.PrefixStore`: a prompt that
            begins like an earlier one, or continues its answer, does not run that part again; 0: off.

        drafters: Makes a drafter for each request, whose rows then decode several tokens in a step where drafts are
            right; None: every row decodes one.

    Attributes:
        marks: The phases that requests entered in the last step, or in the last of its :meth:`parts`.
        drafts: How far drafts were right, over all requests. ``accepted`` counts tokens behind stop strings too; who
            makes the answers counts those with :attr:`Token.drafted`.

    Raises:
        LucidError: Numbers out of range, or more rows than the session can run.
    """

    def __init__(
        self,
        session: Session[Any],
        rows: int = 8,
        prefill_chunk: int | None = 512,
        prefix_tokens: int = 0,
        guides: GuideFactory | None = None,
        drafters: MakeDrafter | None = None,
    ) -> None:
        if rows < 1:
            raise LucidError(f"A batch needs at least one row, not {rows}.")
        if session.batch_limit is not None and rows > session.batch_limit:
            more = ", or build its engines with a larger --max-batch" if session.capabilities.builds_engines else ""
            raise LucidError(
                f"{session.label} runs batches of up to {session.batch_limit} rows, not {rows}; use fewer{more}."
            )
        if prefill_chunk is not None and prefill_chunk < 1:
            raise LucidError(f"A prefill chunk must hold at least one token, not {prefill_chunk}.")
        if drafters is not None:
            prepare_speculation(session)
        self.session, self.rows, self.prefill_chunk = session, rows, prefill_chunk
        self.drafts, self._drafters = DraftCounts(), drafters
        self._near = near_share(session.dtype, session.cache_dtype, session.rounded_inputs)
        self.prompt_tokens_computed = 0
        self.prompt_tokens_reused = 0
        self.generated_tokens = 0
        self.marks: list[Mark] = []
        # Tokens of one call see each other before the cache rounds them, and other sums in another order, which half
        # precision and inputs rounded to 8 bits multiply: where a prompt is cut must not depend on those beside it.
        self._fixed_cuts = session.rounds
        self._store = PrefixStore(session, prefix_tokens)
        # Caches that cannot be cut back are kept at set lengths while a prompt runs, which such cuts make.
        self._fixed_cuts |= prefix_tokens > 0 and any(
            not tensor.has_tokens for each in session.layout for tensor in each
        )
        self._guides = guides
        self._opened: dict[int, Future[Guide]] = {}  # of waiting requests
        self._waiting: OrderedDict[int, Request] = OrderedDict()
        self._filling: _Row | None = None
        self._running: dict[int, _Row] = {}
        self._pool = make_rows(session, rows)
        self._cancelled: dict[int, None] = {}  # in the order in which it was asked for
        self._next = 0

    @property
    def waiting(self) -> int:
        """Requests without a row."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Requests with a row: those whose prompt runs, and those that decode."""
        return len(self._running) + (self._filling is not None)

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        return not (self._waiting or self.active)

    @property
    def cached_tokens(self) -> int:
        """Tokens in the store of prefixes."""
        return self._store.tokens

    def submit(self, request: Request) -> int:
        """Queue a request; return its number, which is in everything that comes out for it.

        Raises:
            LucidError: As :meth:`Request.check`, or it has a constraint and there are no guides. Nothing is queued
                then.
        """
        request.check(self.session)
        if request.constraint is not None and self._guides is None:
            raise LucidError("This batcher was made without guides: it takes no constraints.")
        number, self._next = self._next, self._next + 1
        self._waiting[number] = request
        if request.constraint is not None and self._guides is not None:
            self._opened[number] = self._guides.open(request.constraint, request.stop_at_eos)
        return number

    def cancel(self, number: int) -> None:
        """End a request in the next step, which frees its row; numbers that are unknown or finished are ignored."""
        if number in self._waiting or number in self._running or self._is_filling(number):
            self._cancelled[number] = None

    def step(self) -> list[Event]:
        """Do a piece of work: at most a chunk of prompts, then one token of every running row.

        Returns:
            What came out, in order; nothing when idle. A request that fails by itself (logits that are not finite)
            comes out as finished with ``error``, one whose constraint leaves no token with ``refused``; the others go
            on.

        Raises:
            LucidError: The runtime failed on the whole batch.
        """
        events: list[Event] = []
        marks: list[Mark] = []
        for part in self.parts():
            events += part
            marks += self.marks
        self.marks = marks
        return events

    def parts(self) -> Iterator[list[Event]]:
        """Do a piece of work as :meth:`step` does, and give what comes out as soon as it is known.

        A prompt's first token comes before the next prompt runs and before the running rows' step. Take all parts
        before anything else is asked of the batcher.

        Raises:
            LucidError: As :meth:`step`.
        """
        events: list[Event] = []
        self.marks = []
        for number in self._cancelled:
            self._end(number, Finished(number, "cancelled"), events)
        self._cancelled.clear()
        for _ in self._run_prompts(events):
            yield list(events)
            events.clear()
            self.marks = []
        self._run_rows(events)
        yield events

    def _run_prompts(self, events: list[Event]) -> Iterator[None]:
        """Run at most a chunk of prompts; yield behind each prompt's first token."""
        budget = self.prefill_chunk
        while budget is None or budget > 0:
            if self._filling is None and not self._start_next(events):
                return
            row = self._filling
            assert row is not None and row.cache is not None
            prompt, done = row.request.prompt_ids, len(row.ids)
            part = prompt[done:] if self.prefill_chunk is None else prompt[done : done + self.prefill_chunk]
            if budget is not None and len(part) > budget:
                if self._fixed_cuts:
                    return
                part = part[:budget]
            try:
                logits = self.session.prefill(np.array([part], dtype=np.int64), row.cache)
            except LucidError as error:
                self._end(row.number, Finished(row.number, "error", str(error)), events)
                continue
            row.ids += part
            self.prompt_tokens_computed += len(part)
            if budget is not None:
                budget -= len(part)
            if len(row.ids) < len(prompt):
                self._keep_beginning(row)
                return
            self._take_first(row, logits[0, -1], events)
            yield
            if budget is None:
                return

    def _start_next(self, events: list[Event]) -> bool:
        """Give the first waiting request a row; return whether one has started."""
        if not self._waiting or self.active >= self.rows:
            return False
        number, request = next(iter(self._waiting.items()))
        opened = self._opened.get(number)
        if opened is not None and self._running and not opened.done():  # the running rows need not wait for it
            return False
        try:
            guide = None if opened is None else opened.result()
        except LucidError as error:
            self._end(number, Finished(number, "refused", str(error)), events)
            return self._start_next(events)
        del self._waiting[number]
        self._opened.pop(number, None)
        most = len(request.prompt_ids) - 1  # the last token gives the logits
        cache = self._store.find(request.prompt_ids, most, request.cache_owner)
        if cache is None:
            cache = self.session.empty_cache(1)
        self.prompt_tokens_reused += cache.length
        self.marks.append(Mark(number, "prefill", time.time_ns(), cache.length))
        ids = list(request.prompt_ids[: cache.length])
        self._filling = _Row(number, request, Sampler(request.sampling, request.prompt_ids), guide, cache, ids)
        return True

    def _keep_beginning(self, row: _Row) -> None:
        """Keep what has run of a prompt if a longer cache cannot give it: at 1, 2, 4, … chunks."""
        chunks, rest = divmod(len(row.ids), self.prefill_chunk or len(row.ids))
        if not rest and not chunks & (chunks - 1) and not self._store.gives_beginnings(len(row.ids) + 1):
            assert row.cache is not None
            self._store.add(row.ids, row.cache, row.request.cache_owner)

    def _take_first(self, row: _Row, logits: Array, events: list[Event]) -> None:
        """Choose the first token of a prompt that has run, and let the row decode if it goes on."""
        self.marks.append(Mark(row.number, "decode", time.time_ns()))
        end = self._choose(row, logits, events)
        if end is None or end.reason != "error":
            assert row.cache is not None
            self._store.add(row.ids, row.cache, row.request.cache_owner)
        if end is not None:
            self._end(row.number, end, events)
            return
        assert row.cache is not None
        self._pool.join(row.number, row.cache)
        row.cache, self._filling = None, None
        self._running[row.number] = row
        if self._drafters is not None:
            row.drafter = self._drafters()
            row.drafter.chunk = self.prefill_chunk
            row.drafter.add([*row.request.prompt_ids, row.next])

    def _run_rows(self, events: list[Event]) -> None:
        if not self._running:
            return
        drafts = propose(self._running, self.session.context_limit, self.drafts)
        if any(drafts.values()):
            self._verify(drafts, events)
            return
        tokens = {number: row.next for number, row in self._running.items()}
        for number, logits in self._pool.decode(tokens).items():
            row = self._running[number]
            row.ids.append(row.next)
            end = self._choose(row, logits, events)
            if end is not None:
                self._end(number, end, events)

    def _verify(self, drafts: dict[int, list[int]], events: list[Event]) -> None:
        """Run drafts behind the rows' next tokens, and keep those that are chosen."""
        tokens = {number: [row.next, *drafts[number]] for number, row in self._running.items()}
        kept: dict[int, int] = {}
        ends: dict[int, Finished] = {}
        for number, logits in self._pool.decode_several(tokens).items():
            row = self._running[number]
            row.verified = True

            def choose(logits: Array, draft: int | None, row: _Row = row) -> bool:
                end = self._choose(row, logits, events, draft)
                if end is not None:
                    ends[row.number] = end
                return end is None

            kept[number] = follow(row, drafts[number], logits, choose, self.drafts)
        self._pool.keep(kept)
        for number, end in ends.items():
            self._end(number, end, events)

    def _choose(self, row: _Row, logits: Array, events: list[Event], draft: int | None = None) -> Finished | None:
        """Choose a row's next token; return the end if the row ends with it. Near ties after verifying steps count."""
        try:
            allowed = None if row.guide is None else row.guide.allowed()
            if row.guide is not None and allowed is None:  # the text is complete
                return Finished(row.number, "eos")
            token = row.choose(logits, allowed)
        except NoTokenLeft as error:
            return Finished(row.number, "refused", str(error))
        except LucidError as error:
            return Finished(row.number, "error", str(error))
        request = row.request
        if row.verified and row.greedy:
            choose = row.choose
            self.drafts.near_ties += is_near_tie(choose.chosen_from, logits, self._near, choose.slopes)
        if request.stop_at_eos and token in self.session.config.eos_token_ids:
            return Finished(row.number, "eos")
        row.next, row.count = token, row.count + 1
        if row.guide is not None:
            row.guide.advance(token)  # its mask is computed while the model runs
        if row.drafter is not None:
            row.drafter.add([token])
        self.generated_tokens += 1
        found = log_probabilities(logits, token, request.top_logprobs)
        events.append(Token(row.number, token, *found, drafted=token == draft))
        if row.count == request.max_new_tokens:
            complete = row.guide is not None and row.guide.complete
            return Finished(row.number, "eos" if complete else "length")
        limit = self.session.context_limit
        return Finished(row.number, "context") if limit is not None and len(row.ids) >= limit else None

    def _end(self, number: int, end: Finished, events: list[Event]) -> None:
        """Take a request out of wherever it is, and keep its cache for later prompts if it is sound."""
        if number in self._running:
            row = self._running.pop(number)
            if self._store.budget >= len(row.ids) and end.reason != "error":
                self._store.add(row.ids, self._pool.take(number), row.request.cache_owner)
            self._pool.leave(number)
        elif self._is_filling(number):
            self._filling = None
        else:
            del self._waiting[number]
            self._opened.pop(number, None)
        events.append(end)

    def _is_filling(self, number: int) -> bool:
        return self._filling is not None and self._filling.number == number
