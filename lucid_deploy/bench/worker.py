"""The process of one contender: reads commands as JSON lines on stdin, answers on stdout."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.bench.contenders import LLAMA_CPP, Contender, open_contender
from lucid_deploy.bench.memory import reset_peak, resident_bytes
from lucid_deploy.cache.storage import decoded_layout
from lucid_deploy.errors import LucidError, missing_extra
from lucid_deploy.generation.drafting import LookupDrafter
from lucid_deploy.generation.speculation import Lookahead
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.runtimes.session import Cache, Session
from lucid_deploy.runtimes.take_back import take_back

if TYPE_CHECKING:
    from lucid_deploy.bench.llama_cpp import LlamaCppWorker

_WANTED = 128  # in follow: most tokens that are asked for, wherever the answer ends


class Worker:
    """Holds the session and, between decode measurements, a filled cache."""

    def __init__(self, contender: Contender) -> None:
        started = time.perf_counter()
        self.session: Session[Any] = open_contender(contender)
        self.seconds_to_open = time.perf_counter() - started
        self._filled: tuple[tuple[int, int], Cache[Any]] | None = None
        self._token = min(1, self.session.config.vocab_size - 1)  # 0 may be padding, whose row is nothing but zeros

    def open(self) -> dict[str, Any]:
        """Say how long opening took and how much memory it left occupied."""
        return {
            "seconds": self.seconds_to_open,
            "resident": resident_bytes("VmRSS"),
            **self.session.facts(),
        }

    def logits(self, seed: int, length: int) -> dict[str, Any]:
        """Prefill all but the last of random tokens, decode that one, and return the two rows of logits."""
        ids = np.random.default_rng(seed).integers(0, self.session.config.vocab_size, (1, length))
        cache = self.session.empty_cache(1)
        rows = [self.session.prefill(ids[:, :-1], cache), self.session.decode(ids[:, -1:], cache)]
        return {"logits": [row[0, -1].astype(float).tolist() for row in rows]}

    def prefill(self, batch: int, length: int, chunk: int | None) -> dict[str, Any]:
        """Time one prefill of random tokens into an empty cache."""
        self._filled = None
        ids = np.random.default_rng(0).integers(0, self.session.config.vocab_size, (batch, length))
        cache = self.session.empty_cache(batch)
        reset_peak()
        started = time.perf_counter()
        self.session.prefill(ids, cache, chunk=self.session.prefill_chunk if chunk is None else chunk)
        return {"seconds": time.perf_counter() - started, "peak": resident_bytes("VmHWM")}

    def decode(self, batch: int, context: int, steps: int) -> dict[str, Any]:
        """Time decode steps after a context of random keys and values; the result is seconds per step."""
        if self._filled is None or self._filled[0] != (batch, context):
            self._filled = ((batch, context), self._random_cache(batch, context))
        cache = self.session.fork(self._filled[1])
        token = np.full((batch, 1), self._token)
        self.session.decode(token, cache)  # the first step of a context pays for allocation
        reset_peak()
        started = time.perf_counter()
        for _ in range(steps):
            self.session.decode(token, cache)
        return {"seconds": (time.perf_counter() - started) / steps, "peak": resident_bytes("VmHWM")}

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
        """Time the decoding of a given answer, whatever the model would say: seconds, and how far drafts were right.

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

    def _random_cache(self, batch: int, context: int) -> Cache[Any]:
        rng = np.random.default_rng(0)
        layers = [
            tuple(rng.standard_normal(t.batch_shape(batch, context), dtype=np.float32) for t in decoded_layout(layer))
            for layer in self.session.layout
        ]
        return self.session.cache_from_arrays(layers, np.ones((batch, context), dtype=bool))


def make_worker(contender: Contender) -> Worker | LlamaCppWorker:
    """Open a contender, as what answers a worker's commands.

    Raises:
        LucidError: As :func:`~lucid_deploy.bench.contenders.open_contender` and
            :class:`~lucid_deploy.bench.llama_cpp.LlamaCppWorker`; or llama.cpp is not installed.
    """
    if contender.kind != LLAMA_CPP:
        return Worker(contender)
    from lucid_deploy.artifact import open_artifact

    try:
        from lucid_deploy.bench.llama_cpp import LlamaCppWorker
    except ImportError as error:
        raise missing_extra(error.name or "xllamacpp", "bench", "measure llama.cpp beside an artifact") from error
    return LlamaCppWorker(open_artifact(contender.artifact), contender.options.threads)


def main() -> None:
    """Serve commands until stdin ends. A fault is an answer too, with the key ``error``."""
    worker: Worker | LlamaCppWorker | None = None
    for line in sys.stdin:
        command = json.loads(line)
        operation = command.pop("op")
        try:
            if operation == "open":
                worker = make_worker(Contender(**{**command, "options": RuntimeOptions(**command["options"])}))
                answer = worker.open()
            else:
                assert worker is not None
                answer = getattr(worker, operation)(**command)
        except LucidError as error:
            answer = {"error": str(error)}
        except Exception as error:  # noqa: BLE001 (handed to the process that asked)
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
