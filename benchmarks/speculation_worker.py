"""The process that speculation.py measures: verifying of drafts, and decoding of known answers."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import numpy as np

from lucid_deploy.bench.worker import Worker, main
from lucid_deploy.generation.drafting import LookupDrafter
from lucid_deploy.generation.speculation import Lookahead
from lucid_deploy.runtimes.cache_rows import take_back

_WANTED = 128  # most tokens that are asked for, wherever the answer ends


class SpeculationWorker(Worker):
    """Measures speculation beside decoding."""

    def verify(self, context: int, tokens: int, steps: int) -> dict[str, Any]:
        """Time steps that verify so many tokens of one row, all of which are taken back; seconds per step."""
        if self._filled is None or self._filled[0] != (1, context):
            self._filled = ((1, context), self._random_cache(1, context))
        cache = self.session.fork(self._filled[1])
        ids, none = np.full((1, tokens), self._token), np.zeros(1, dtype=np.int64)
        seconds = 0.0
        for step in range(steps + 1):
            started = time.perf_counter()
            self.session.decode_several(ids, cache)
            seconds += time.perf_counter() - started if step else 0.0
            take_back(self.session, cache, tokens, none)
        return {"seconds": seconds / steps}

    def follow(self, prompt: list[int], answer: list[int], speculate: bool) -> dict[str, Any]:
        """Time the decoding of a given answer; return seconds, and how many drafted tokens were accepted.

        Drafts are looked up in prompt and answer, and the first ones run with the prompt. What runs is what runs where
        the model says this answer itself: all but its last token. ``prompt`` is the time of the prompt.
        """
        cache = self.session.empty_cache(1)
        chunk, ids = self.session.prefill_chunk, np.array([prompt])
        if not speculate:
            started = time.perf_counter()
            self.session.prefill(ids, cache, chunk=chunk)
            begun = time.perf_counter()
            for token in answer[:-1]:
                self.session.decode(np.array([[token]]), cache)
            return {"prompt": begun - started, "seconds": time.perf_counter() - begun, "proposed": 0, "accepted": 0}
        drafter = LookupDrafter()
        ahead = Lookahead(self.session, cache, drafter)
        started = time.perf_counter()
        drafter.add(prompt)
        logits = ahead.prefill(prompt, _WANTED, chunk)
        begun = time.perf_counter()
        for token in answer[:-1]:
            ahead.judge(logits)
            ahead.accept(token)
            logits = ahead(token, _WANTED)
        ahead.judge(logits)
        ahead.accept(answer[-1])
        seconds = {"prompt": begun - started, "seconds": time.perf_counter() - begun}
        return {**seconds, **asdict(ahead.counts)}


if __name__ == "__main__":
    main(SpeculationWorker)
