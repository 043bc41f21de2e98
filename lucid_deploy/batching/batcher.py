"""Continuous batching over any session: requests start and finish at any step, and prompts are prefilled in chunks."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

import numpy as np

from lucid_deploy.batching.request import BatchRow, Event, Finished, Request
from lucid_deploy.batching.rows import StaticRows, make_rows
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.drafting import MakeDrafter
from lucid_deploy.generation.guide import Guide, GuideFactory
from lucid_deploy.generation.prefix_store import BLOCK, PrefixStore
from lucid_deploy.generation.sampling import NoTokenLeft, Sampler
from lucid_deploy.generation.speculation import Chooser, DraftCounts, prepare_speculation, propose
from lucid_deploy.runtimes.session import Array, Session

# How long a step waits for constraint masks that are not ready when the model has run. A row whose mask takes longer is
# paused while the others go on. Pausing and resuming copy the row's cache (without a static cache, all caches), so the
# more often a row has been paused, the longer it stays paused.
GRACE_SHARE = 0.1  # of the time of the model's step …
GRACE_SECONDS = 0.002  # … or this, if longer
ALONE_SECONDS = 0.05  # wait if no other row could run
MOST_STEPS_AWAY = 8  # the n-th pause of a row takes at least min(n, this) steps while others run
# A step runs at most this many prompt tokens for each request, or a chunk if that is more. Our benchmark has 3 prompt
# tokens for each token of its answers (200 and 64); with 6, half of the steps run no prompt and are short.
PROMPT_TOKENS_PER_ROW = 6
ALONE_CHUNK = 128  # smallest chunk, in tokens, while no row decodes, unless results depend on where prompts are cut


class Batcher:
    """Runs many requests at once. Not thread-safe: one thread calls it.

    Args:
        session: Of any runtime. When a request starts or ends, all rows are copied; with a static cache, usually one.
        rows: Most requests that run at once. The next to start is the oldest waiting request of the client that has the
            fewest rows; a request whose constraint is still being compiled is skipped. A request that waits for its
            constraint's mask frees its row, but still counts for its client.
        prefill_chunk: Most prompt tokens per step while other requests wait for their next token, or 6 for each request
            if that is more; None: one whole prompt per step. Short prompts share a step, and the last one is cut where
            the step is full. If cuts change results (:attr:`Session.cuts_matter`) or rings or states are stored,
            prompts are cut as if they ran alone: at multiples of the attribute, which may exceed the argument.
        prefix_tokens: Budget in tokens of a :class:`~lucid_deploy.generation.prefix_store.PrefixStore`: a prompt that
            begins like an earlier one, or continues its answer, reuses the stored blocks; 0: off.
        guides: Makes guides for the answers of requests with constraints; None: such requests are refused.
        drafters: Makes a drafter for each request; None: each step decodes one token of every row.

    Attributes:
        drafts: Counts of drafted and accepted tokens of all requests, including tokens after stop strings.
        store: The stored prefixes.
        generated_tokens: Number of ``Token`` events so far, over all requests.
        prompt_tokens_computed: Prompt tokens that were run; those found in the store are ``prompt_tokens_reused``.
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
        self.drafts, self._drafters, self._guides = DraftCounts(), drafters, guides
        self.prompt_tokens_computed = 0
        self.prompt_tokens_reused = 0
        self.generated_tokens = 0
        self._chooser = Chooser(session, self.drafts)
        self._shares_steps, grain = False, 1
        if session.in_place is not None and session.in_place.shares_steps and drafters is None and rows > 1:
            session.in_place.prepare_shared()
            self._shares_steps = True
            share = PROMPT_TOKENS_PER_ROW * rows // BLOCK
            if session.cuts_matter and prefill_chunk is not None and share * BLOCK > prefill_chunk:
                # Make a chunk as long as a step's budget, so that one call runs it. Stored prefixes end at such cuts.
                self.prefill_chunk, grain = share * BLOCK, share
        self.store = PrefixStore(session, prefix_tokens, grain)
        self._stores_states = prefix_tokens > 0 and self.store.has_states
        # If cuts change results, where a prompt is cut must not depend on other prompts: tokens of one call attend to
        # each other's unrounded rows, and sums in another order differ in half precision. Rings and states can only be
        # stored at the end of a chunk, so chunks end at the lengths for which they are to be stored.
        self._fixed_cuts = session.cuts_matter or self._stores_states
        # Until it ends, a request is in one of these four; ``_filling`` is the request that is being prefilled.
        self._waiting: OrderedDict[int, Request] = OrderedDict()
        self._filling: BatchRow | None = None
        self._running: dict[int, BatchRow] = {}
        self._paused: dict[int, BatchRow] = {}
        self._opened: dict[int, Future[Guide]] = {}  # guides of waiting requests
        self._pool = make_rows(session, rows)  # caches of the running rows
        self._beside: list[int] = []  # prompt tokens of ``_filling`` that run together with this step's rows
        self._cancelled: dict[int, None] = {}  # requests to cancel in the next step, in order
        self._next = 0
        self._steps = 0

    @property
    def waiting(self) -> int:
        """Number of requests that have not started."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Number of requests that have started and not finished: prefilling, decoding or paused."""
        return len(self._active_rows)

    @property
    def cache_tokens(self) -> int:
        """Number of tokens in the caches of active requests."""
        return sum(len(row.ids) for row in self._active_rows)

    @property
    def _active_rows(self) -> list[BatchRow]:
        return [*self._running.values(), *self._paused.values(), *filter(None, [self._filling])]

    @property
    def idle(self) -> bool:
        """Whether there are no requests, so that a step would do nothing."""
        return not (self._waiting or self.active)

    @property
    def cached_tokens(self) -> int:
        """Number of tokens in the prefix store."""
        return self.store.tokens

    def submit(self, request: Request) -> int:
        """Queue a request; return its number, by which its events refer to it."""
        request.check(self.session)
        if request.constraint is not None and self._guides is None:
            raise LucidError("The request has a constraint; create the Batcher with guides, which enforce constraints.")
        number, self._next = self._next, self._next + 1
        if request.constraint is not None and self._guides is not None:
            self._opened[number] = self._guides.open(request.constraint, request.stop_at_eos)
        self._waiting[number] = request
        return number

    def cancel(self, number: int) -> None:
        """End a request in the next step, which frees its row; ignore numbers that are unknown or finished."""
        filling = [row.number for row in (self._filling,) if row is not None]
        if any(number in place for place in (self._waiting, filling, self._running, self._paused)):
            self._cancelled[number] = None

    def step(self) -> list[Event]:
        """Run one step: some prompt tokens, then one token of every running row, or several with drafts.

        Returns:
            The events, in order; none when idle. A request that fails (such as by logits that are not finite) finishes
            with ``error``, one whose constraint cannot be met or is too costly with ``refused``; the others go on.
        """
        return [event for part in self.parts() for event in part]

    def parts(self) -> Iterator[list[Event]]:
        """Run one step as :meth:`step` does, and yield events as soon as they are known.

        The first token after a prompt is yielded before the next prompt and the running rows run, unless the end of the
        prompt runs together with the rows. Exhaust the iterator before calling other methods.
        """
        events: list[Event] = []
        self._steps += 1
        for number in self._cancelled:
            self._end(number, Finished(number, "cancelled"), events)
        self._cancelled.clear()
        self._resume(events)
        for _ in self._run_prompts(events):
            yield list(events)
            events.clear()
        self._run_rows(events)
        if not self._running and self._filling is None and not events:
            self._wait_for_guides()
        yield events

    def _run_prompts(self, events: list[Event]) -> Iterator[None]:
        """Run this step's prompt tokens, or leave the last ones to ``_beside``; yield after each first token."""
        budget = self._prompt_budget()
        while budget is None or budget > 0:
            if self._filling is None and not self._start_next(events):
                return
            row = self._filling
            assert row is not None and row.cache is not None
            prompt, done = row.request.prompt_ids, len(row.ids)
            part = prompt[done : self._chunk_end(row)]
            if budget is not None and len(part) > budget:
                if self._fixed_cuts:
                    return
                part = part[:budget]
            if done + len(part) == len(prompt):
                self._start_drafter(row)
            if budget is not None:
                budget -= len(part)
                if self._shares_steps and self._running and (budget <= 0 or not self._waiting):
                    self._beside = part
                    return
            try:
                logits = self.session.prefill(np.array([part], dtype=np.int64), row.cache)[0]
            except LucidError as error:
                self._end(row.number, Finished(row.number, "error", str(error)), events)
                continue
            if self._finish_part(row, part, logits, events):
                yield
                if budget is None:
                    return

    def _finish_part(self, row: BatchRow, part: list[int], logits: Array, events: list[Event]) -> bool:
        """Record that a part of a prompt has run; after the last part, choose the first token and return True."""
        row.ids += part
        self.prompt_tokens_computed += len(part)
        if len(row.ids) < len(row.request.prompt_ids):
            self._store_beginning(row)
            return False
        self._take_first(row, logits, events)
        return True

    @property
    def _chunk(self) -> int | None:
        """The current prefill chunk: at least :data:`ALONE_CHUNK` while no row decodes, unless cuts are fixed."""
        is_alone = not self._running and not self._fixed_cuts
        return self.prefill_chunk and max(self.prefill_chunk, ALONE_CHUNK if is_alone else 0)

    def _prompt_budget(self) -> int | None:
        """Return how many prompt tokens may run in this step; None: one whole prompt.

        The budget grows with the requests that have or could have a row: steps get longer, and more prompts arrive.
        """
        chunk, requests = self._chunk, min(self.rows, self.active + self.waiting)
        if chunk is None:
            return None
        most = max(chunk, PROMPT_TOKENS_PER_ROW * requests)
        return most - most % chunk if self._fixed_cuts else most

    def _chunk_end(self, row: BatchRow) -> int:
        """Return where the next chunk of a row's prompt ends at the latest."""
        done, end = len(row.ids), len(row.request.prompt_ids)
        chunk = self._chunk if self._fixed_cuts else self._prompt_budget()  # one call per step: it reads all weights
        if chunk is not None:
            end = min(end, done + chunk - (done % chunk if self._fixed_cuts else 0))
        border = self._last_border(row)
        return min(end, border) if self._stores_states and done < border else end

    @staticmethod
    def _last_border(row: BatchRow) -> int:
        """Return the end of a prompt's last whole block without its last token, which always has to run."""
        return (len(row.request.prompt_ids) - 1) // BLOCK * BLOCK

    def _start_next(self, events: list[Event]) -> bool:
        """Give a row to the next waiting request whose guide, if it needs one, is ready; return whether one started."""
        for number in self._next_in_line():
            request, opened = self._waiting[number], self._opened.get(number)
            if opened is not None and not opened.done():
                continue
            try:
                guide = None if opened is None else opened.result()
            except LucidError as error:
                self._end(number, Finished(number, "refused", str(error)), events)
                continue
            most = len(request.prompt_ids) - 1  # the last token has to run, for its logits
            adapter = self.session.adapter_id(request.adapter)
            cache, blocks = self.store.find(request.prompt_ids, most, request.cache_owner, adapter)
            ids = list(request.prompt_ids[: cache.length])
            self._filling = BatchRow(
                Sampler(request.sampling, request.prompt_ids),
                request.max_new_tokens,
                request.stop_at_eos,
                guide,
                ids=ids,
                number=number,
                request=request,
                cache=cache,
                blocks=blocks,
                reused=len(ids),
            )
            del self._waiting[number]
            self._opened.pop(number, None)
            self.prompt_tokens_reused += len(ids)
            return True
        return False

    @property
    def _has_free_row(self) -> bool:
        return len(self._running) + (self._filling is not None) < self.rows

    def _next_in_line(self) -> list[int]:
        """Return the waiting requests that may start, those of clients with the fewest rows first."""
        rows = self._active_rows
        if not self._has_free_row or len(rows) >= 2 * self.rows:  # bounds the memory of paused rows' caches
            return []
        held = Counter(row.request.client for row in rows)
        found = [number for number, request in self._waiting.items() if held[request.client] < self.rows]
        return sorted(found, key=lambda number: held[self._waiting[number].client])

    def _store_beginning(self, row: BatchRow) -> None:
        """With rings or states, store the prompt so far after 1, 2, 4, … chunks and at :meth:`_last_border`."""
        chunks, rest = divmod(len(row.ids), self.prefill_chunk or len(row.ids))
        is_stored = not rest and not chunks & (chunks - 1)
        if self._stores_states and (is_stored or len(row.ids) == self._last_border(row)):
            self._store_row(row)

    def _start_drafter(self, row: BatchRow) -> None:
        """Create a row's drafter, if there are drafters, and pass it the prompt."""
        if self._drafters is None:
            return
        row.drafter = self._drafters()
        row.drafter.chunk = self.prefill_chunk and max(self.prefill_chunk, ALONE_CHUNK)
        row.drafter.ends = self.session.config.eos_token_ids if row.request.stop_at_eos else ()
        row.drafter.add(row.request.prompt_ids)

    def _take_first(self, row: BatchRow, logits: Array, events: list[Event]) -> None:
        """Choose the first token after a prompt and store the prompt's cache; then let the row decode, pause or end."""
        row.next = row.ids.pop()
        self._set_deadline(0.0)
        end = self._take(row, [], logits, events)
        if end is None or not end.failed:
            self._store_row(row)
        if end is not None:
            self._end(row.number, end, events)
            return
        self._filling = None
        if row.pending is None:
            self._let_decode(row)
        else:
            self._paused[row.number] = row

    def _run_rows(self, events: list[Event]) -> None:
        """Run each running row's newest token and its drafts, and choose the next tokens."""
        if not self._running:
            return
        drafts = propose(self._running, self.session.context_limit, self.drafts)
        started = time.monotonic()
        tokens = {number: [row.next, *drafts[number]] for number, row in self._running.items()}
        logits, first = self._run_beside(tokens, events) if self._beside else (self._pool.run(tokens), None)
        self._set_deadline(time.monotonic() - started)
        kept: dict[int, int] = {}
        ends: dict[int, Finished] = {}
        for number, row in self._running.items():
            row.verified |= any(drafts.values())
            before = len(row.ids)
            end = self._take(row, drafts[number], logits[number], events)
            kept[number] = len(row.ids) - before
            if end is not None:
                ends[number] = end
        if any(drafts.values()):
            self._pool.keep(kept)
        for number, end in ends.items():
            self._end(number, end, events)
        for row in [row for row in self._running.values() if row.pending is not None]:
            self._pause(row)
        part, self._beside = self._beside, []
        if first is not None and self._filling is not None:
            self._finish_part(self._filling, part, first, events)

    def _run_beside(self, tokens: dict[int, list[int]], events: list[Event]) -> tuple[dict[int, Array], Array | None]:
        """Run the rows together with ``_beside``; return the logits of both, or None for a prompt that failed."""
        row = self._filling
        assert isinstance(self._pool, StaticRows) and row is not None and row.cache is not None
        try:
            return self._pool.run_beside(tokens, self._beside, row.cache)
        except LucidError as error:
            self._end(row.number, Finished(row.number, "error", str(error)), events)
            return self._pool.run(tokens), None

    def _take(self, row: BatchRow, drafts: list[int], logits: Array, events: list[Event]) -> Finished | None:
        """Choose a row's tokens as :meth:`Chooser.follow` does; return its end if it ends or fails."""
        try:
            for choice in self._chooser.follow(row, drafts, logits):
                self.generated_tokens += 1
                events.append(row.token(choice))
        except NoTokenLeft as error:
            return row.end("refused", str(error))
        except LucidError as error:
            return row.end("error", str(error))
        return row.end(row.finish_reason) if row.finish_reason else None

    def _set_deadline(self, step_seconds: float) -> None:
        """Set how long choices may wait for masks: briefly, or a little longer if no other row could run meanwhile."""
        is_alone = self.active == 1 and not self._waiting
        seconds = ALONE_SECONDS if is_alone else max(GRACE_SECONDS, GRACE_SHARE * step_seconds)
        self._chooser.deadline = time.monotonic() + seconds

    def _pause(self, row: BatchRow) -> None:
        """Pause a running row whose mask is not ready."""
        row.cache = self.session.fork(self._pool.view(row.number))
        row.pauses += 1
        row.resume_at = self._steps + min(row.pauses, MOST_STEPS_AWAY)
        self._pool.leave(row.number)
        self._paused[row.number] = self._running.pop(row.number)

    def _resume(self, events: list[Event]) -> None:
        """Resume paused rows with ready masks, if their pause is over (or no row runs) and a row is free."""
        self._set_deadline(0.0)
        for row in list(self._paused.values()):
            assert row.guide is not None and row.pending is not None
            if not row.guide.wait(0.0) or (self._running and self._steps < row.resume_at):
                continue
            if not self._has_free_row:
                return
            row.next = row.ids.pop()  # as if this token had just run
            end = self._take(row, [], row.pending[None], events)
            if end is not None:
                self._end(row.number, end, events)
            else:
                del self._paused[row.number]
                self._let_decode(row)

    def _wait_for_guides(self) -> None:
        """Wait briefly for any mask or compiled constraint that a request needs to continue."""
        needed = [row.guide.mask for row in self._paused.values() if row.guide is not None]
        needed += [self._opened[each] for each in self._next_in_line() if each in self._opened]  # type: ignore[misc]
        if needed:
            wait(needed, ALONE_SECONDS, FIRST_COMPLETED)

    def _let_decode(self, row: BatchRow) -> None:
        assert row.cache is not None
        self._pool.join(row.number, row.cache)
        row.cache = None
        self._running[row.number] = row

    def _end(self, number: int, end: Finished, events: list[Event]) -> None:
        """Remove a request and add its end to the events; store a running or paused row's cache unless it failed."""
        row = self._running.get(number) or self._paused.pop(number, None)
        if row is not None:
            if not end.failed:
                self._store_row(row)
            self.store.release(row.blocks)
            if self._running.pop(number, None) is not None:
                self._pool.leave(number)
        elif self._filling is not None and self._filling.number == number:
            self.store.release(self._filling.blocks)
            self._filling = None
        else:
            del self._waiting[number]
            self._opened.pop(number, None)
        events.append(end)

    def _store_row(self, row: BatchRow) -> None:
        if self.store.takes(len(row.ids)):
            cache = self._pool.view(row.number) if row.cache is None else row.cache
            self.store.add(row.ids, cache, row.request.cache_owner)
