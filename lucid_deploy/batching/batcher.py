"""Continuous batching over any session: requests start and finish at any step, prompts are prefilled between steps."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from lucid_deploy.batching.choosing import Choosing
from lucid_deploy.batching.drafts import drop, prefill, propose, propose_with_prompt
from lucid_deploy.batching.request import Event, Finished, Mark, Request
from lucid_deploy.batching.row import Row, first_to_end
from lucid_deploy.batching.rows import make_rows
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.drafting import MakeDrafter
from lucid_deploy.generation.guide import Guide, GuideFactory
from lucid_deploy.generation.prefix_store import PrefixStore
from lucid_deploy.generation.sampling import Sampler
from lucid_deploy.generation.speculation import DraftCounts, prepare_speculation
from lucid_deploy.runtimes.session import Array, Session
from lucid_deploy.shortages import TooLittleMemory, memory_errors_told


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
        self._choosing = Choosing(session, self.drafts, self._relieved)
        self.prompt_tokens_computed = 0
        self.prompt_tokens_reused = 0
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
        self._filling: Row | None = None
        self._running: dict[int, Row] = {}
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
    def generated_tokens(self) -> int:
        """Tokens chosen so far, over all requests."""
        return self._choosing.tokens

    @property
    def cached_tokens(self) -> int:
        """Tokens in the store of prefixes."""
        return self._store.tokens

    def submit(self, request: Request) -> int:
        """Queue a request; return its number, which is in everything that comes out for it.

        Raises:
            LucidError: As :meth:`Request.check`, or it has a constraint and there are no guides, or no thread for them.
                Nothing is queued then.
        """
        request.check(self.session)
        if request.constraint is not None and self._guides is None:
            raise LucidError("This batcher was made without guides: it takes no constraints.")
        number, self._next = self._next, self._next + 1
        if request.constraint is not None and self._guides is not None:
            self._opened[number] = self._guides.open(request.constraint, request.stop_at_eos)
        self._waiting[number] = request
        return number

    def cancel(self, number: int) -> None:
        """End a request in the next step, which frees its row; numbers that are unknown or finished are ignored."""
        if number in self._waiting or number in self._running or self._is_filling(number):
            self._cancelled[number] = None

    def step(self) -> list[Event]:
        """Do a piece of work: at most a chunk of prompts, then one token of every running row.

        Returns:
            What came out, in order; nothing when idle. A request that fails by itself (logits that are not finite)
            comes out as finished with ``error``, one whose constraint leaves no token with ``refused``, and one for
            which there is too little memory with ``memory``; the others go on.

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
                drafts = self._drafts_with_prompt(row) if len(row.ids) + len(part) == len(prompt) else []
                with memory_errors_told():
                    logits = prefill(self.session, row.cache, part, drafts)
            except TooLittleMemory as error:
                self._end(row.number, self._relieved(row.number, error), events)
                return  # the next prompt would hardly find more now
            except LucidError as error:
                self._end(row.number, Finished.of_error(row.number, error), events)
                continue
            row.ids += part
            self.prompt_tokens_computed += len(part)
            if budget is not None:
                budget -= len(part)
            if len(row.ids) < len(prompt):
                self._keep_beginning(row)
                return
            self._take_first(row, drafts, logits, events)
            yield
            if budget is None:
                return

    def _start_next(self, events: list[Event]) -> bool:
        """Give the first waiting request a row, past those that are refused; return whether one has started."""
        while self._waiting and self.active < self.rows:
            number, request = next(iter(self._waiting.items()))
            opened = self._opened.get(number)
            if opened is not None and self._running and not opened.done():  # the running rows need not wait for it
                return False
            try:
                with memory_errors_told():
                    guide = None if opened is None else opened.result()
            except TooLittleMemory as error:
                self._end(number, self._relieved(number, error), events)
                return False
            except LucidError as error:
                self._end(number, Finished.of_error(number, error, "refused"), events)
                continue
            try:
                row = self._row_of(number, request, guide)
            except TooLittleMemory as error:
                self._end(number, self._relieved(number, error), events)
                return False
            del self._waiting[number]
            self._opened.pop(number, None)
            self.prompt_tokens_reused += len(row.ids)
            self.marks.append(Mark(number, "prefill", time.time_ns(), len(row.ids)))
            self._filling = row
            return True
        return False

    @memory_errors_told()
    def _row_of(self, number: int, request: Request, guide: Guide | None) -> Row:
        """Return a row for a request, with what is stored of its prompt."""
        most = len(request.prompt_ids) - 1  # the last token gives the logits
        cache = self._store.find(request.prompt_ids, most, request.cache_owner)
        if cache is None:
            cache = self.session.empty_cache(1)
        ids = list(request.prompt_ids[: cache.length])
        return Row(number, request, Sampler(request.sampling, request.prompt_ids), guide, cache, ids)

    def _keep_beginning(self, row: Row) -> None:
        """Keep what has run of a prompt if a longer cache cannot give it: at 1, 2, 4, … chunks."""
        chunks, rest = divmod(len(row.ids), self.prefill_chunk or len(row.ids))
        if not rest and not chunks & (chunks - 1) and not self._store.gives_beginnings(len(row.ids) + 1):
            self._store_row(row)

    @memory_errors_told()
    def _drafts_with_prompt(self, row: Row) -> list[int]:
        """Give a row its drafter, which reads the prompt; return what may run with the prompt's last token."""
        if self._drafters is None:
            return []
        row.drafter = self._drafters()
        row.drafter.chunk = self.prefill_chunk
        row.drafter.ends = self.session.config.eos_token_ids if row.request.stop_at_eos else ()
        row.drafter.add(row.request.prompt_ids)
        return propose_with_prompt(self.session, row, len(row.request.prompt_ids), self.drafts)

    def _take_first(self, row: Row, drafts: list[int], logits: Array, events: list[Event]) -> None:
        """Choose the first tokens of a prompt that has run, with drafts behind it; let the row decode if it goes on."""
        self.marks.append(Mark(row.number, "decode", time.time_ns()))
        row.next = row.ids.pop()
        kept, end = self._choosing.follow(row, drafts, logits, events)
        is_whole = True
        try:
            with memory_errors_told():
                assert row.cache is not None
                drop(self.session, row.cache, kept, logits)
        except TooLittleMemory as error:
            is_whole, end = False, end or self._relieved(row.number, error)
        if is_whole and (end is None or not end.failed):
            self._store_row(row)
        if end is not None:
            self._end(row.number, end, events)
            return
        try:
            self._let_decode(row)
        except TooLittleMemory as error:
            self._end(row.number, self._relieved(row.number, error), events)
            return
        row.cache, row.is_new, self._filling = None, True, None
        self._running[row.number] = row

    @memory_errors_told()
    def _let_decode(self, row: Row) -> None:
        assert row.cache is not None
        self._pool.join(row.number, row.cache)

    def _run_rows(self, events: list[Event]) -> None:
        if not self._running:
            return
        drafts = propose(self._running, self.session.context_limit, self.drafts)
        several = any(drafts.values())
        try:
            with memory_errors_told():
                if several:
                    found = self._pool.decode_several({n: [row.next, *drafts[n]] for n, row in self._running.items()})
                else:
                    found = self._pool.decode({n: row.next for n, row in self._running.items()})
        except TooLittleMemory as error:  # the rows are as they were: the next step tries again without one of them
            prompts = [] if self._filling is None else [self._filling]
            number = first_to_end([*self._running.values(), *prompts])
            self._end(number, self._relieved(number, error), events)
            return
        for row in self._running.values():
            row.is_new = False
        if several:
            self._follow(drafts, found, events)
            return
        for number, logits in found.items():
            row = self._running[number]
            row.ids.append(row.next)
            end = self._choosing.choose(row, logits, events)
            if end is not None:
                self._end(number, end, events)

    def _follow(self, drafts: dict[int, list[int]], found: dict[int, Array], events: list[Event]) -> None:
        """Keep the drafts that are chosen, of those that ran behind the rows' next tokens."""
        kept: dict[int, int] = {}
        ends: dict[int, Finished] = {}
        for number, logits in found.items():
            row = self._running[number]
            row.verified = True
            kept[number], end = self._choosing.follow(row, drafts[number], logits, events)
            if end is not None:
                ends[number] = end
        self._pool.keep(kept)
        for number, end in ends.items():
            self._end(number, end, events)

    def _end(self, number: int, end: Finished, events: list[Event]) -> None:
        """Take a request out of wherever it is, and keep its cache for later prompts if it is sound."""
        if number in self._running:
            row = self._running.pop(number)
            if self._store.budget >= len(row.ids) and not end.failed:
                self._store_row(row)
            self._pool.leave(number)
        elif self._is_filling(number):
            self._filling = None
        else:
            del self._waiting[number]
            self._opened.pop(number, None)
        events.append(end)

    def _relieved(self, number: int, error: TooLittleMemory) -> Finished:
        """Return the end of a request for which there is too little memory; give back what others can do without."""
        self._store.clear()
        self.session.release_memory()
        return Finished(number, "memory", str(error))

    def _store_row(self, row: Row) -> None:
        """Keep a row's cache for later prompts, if there is memory for it: they would only be slower without."""
        try:
            with memory_errors_told():
                cache = self._pool.take(row.number) if row.cache is None else row.cache
                self._store.add(row.ids, cache, row.request.cache_owner)
        except TooLittleMemory as error:
            self._relieved(row.number, error)

    def _is_filling(self, number: int) -> bool:
        return self._filling is not None and self._filling.number == number
