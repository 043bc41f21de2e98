"""The process that speculation.py measures: it verifies drafts, and decodes known answers."""

from __future__ import annotations

import itertools
import time
from dataclasses import asdict
from typing import Any

import numpy as np

from lucid_deploy.bench.worker import Worker, main
from lucid_deploy.generation.drafting import LookupDrafter
from lucid_deploy.generation.generate import decode
from lucid_deploy.generation.sampling import Sampler, Sampling
from lucid_deploy.generation.speculation import DraftCounts, Row
from lucid_deploy.runtimes.cache_rows import take_back
from lucid_deploy.runtimes.session import Array

_WANTED = 128  # most tokens that are asked for, wherever the answer ends


class Given(Sampler):
    """A sampler that chooses the tokens of a given answer, whatever the logits are."""

    def __init__(self, answer: list[int]) -> None:
        super().__init__(Sampling())
        self._tokens = iter(answer)

    def __call__(self, logits: Array, allowed: Array | None = None) -> int:
        """Return the answer's next token."""
        self.chosen_from = logits
        return next(self._tokens)


class SpeculationWorker(Worker):
    """Measures speculation beside decoding."""

    def verify(self, context: int, tokens: int, steps: int) -> dict[str, Any]:
        """Time steps that verify ``tokens`` tokens of one row and then take them back; return seconds per step."""
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
        """Time the decoding of a given answer after its prompt; return seconds, and how many drafts were accepted.

        Drafts are looked up in prompt and answer. The same tokens run as if the model had chosen this answer itself:
        all but its last.
        """
        cache, counts = self.session.empty_cache(1), DraftCounts()
        row = Row(Given(answer), max(_WANTED, len(answer)), stop_at_eos=False, ids=prompt[:-1], next=prompt[-1])
        logits = self.session.prefill(np.array([prompt]), cache, chunk=self.session.prefill_chunk)[0]
        if speculate:
            self.session.prepare_several()
            row.drafter = LookupDrafter()
            row.drafter.add(prompt)
        started = time.perf_counter()
        for _ in itertools.islice(decode(self.session, cache, row, logits, counts), len(answer)):
            pass
        return {"seconds": time.perf_counter() - started, **asdict(counts)}


if __name__ == "__main__":
    main(SpeculationWorker)
