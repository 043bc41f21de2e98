"""The process of one contender: reads commands as JSON lines on stdin, answers on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from lucid_deploy.artifact import open_artifact
from lucid_deploy.bench.contenders import Contender, open_contender
from lucid_deploy.bench.machine import reset_peak, resident_bytes
from lucid_deploy.cache.storage import decoded_layout
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.runtimes.session import Cache, Session


class Worker:
    """Answers the commands; holds a contender's session and, between decode measurements, a filled cache."""

    def __init__(self, contender: Contender) -> None:
        started = time.perf_counter()
        self.session: Session[Any] = open_contender(contender)
        manifest = open_artifact(contender.artifact).manifest
        self.numbers = manifest.numbers if contender.kind == "artifact" else manifest.dtype  # PyTorch dequantizes
        self.seconds_to_open = time.perf_counter() - started
        self._filled: tuple[tuple[int, int], Cache[Any]] | None = None
        self._token = min(1, self.session.config.vocab_size - 1)  # 0 may be padding, whose embedding is all zeros

    def open(self) -> dict[str, Any]:
        """Return how long opening took, how much memory is in use, and the session's facts."""
        return {
            "seconds": self.seconds_to_open,
            "resident": resident_bytes("VmRSS"),
            "numbers": self.numbers,
            **self.session.facts(),
        }

    def logits(self, seed: int, length: int) -> dict[str, Any]:
        """Prefill all but the last of ``length`` random tokens, decode the last one, and return both rows of logits."""
        ids = np.random.default_rng(seed).integers(0, self.session.config.vocab_size, (1, length))
        cache = self.session.empty_cache(1)
        rows = [self.session.prefill(ids[:, :-1], cache), self.session.decode(ids[:, -1:], cache)]
        return {"logits": [row[0, -1].astype(float).tolist() for row in rows]}

    def prefill(self, batch: int, length: int, chunk: int | None) -> dict[str, Any]:
        """Time one prefill of random tokens into an empty cache; return seconds, and peak memory in bytes."""
        self._filled = None
        ids = np.random.default_rng(0).integers(0, self.session.config.vocab_size, (batch, length))
        cache = self.session.empty_cache(batch)
        reset_peak()
        started = time.perf_counter()
        self.session.prefill(ids, cache, chunk=self.session.prefill_chunk if chunk is None else chunk)
        return {"seconds": time.perf_counter() - started, "peak": resident_bytes("VmHWM")}

    def decode(self, batch: int, context: int, steps: int) -> dict[str, Any]:
        """Time decode steps after a context of random keys and values; return seconds per step, and peak memory."""
        if self._filled is None or self._filled[0] != (batch, context):
            self._filled = ((batch, context), self._random_cache(batch, context))
        cache = self.session.fork(self._filled[1])
        token = np.full((batch, 1), self._token)
        self.session.decode(token, cache)  # the first step after a fork pays for allocation
        reset_peak()
        started = time.perf_counter()
        for _ in range(steps):
            self.session.decode(token, cache)
        return {"seconds": (time.perf_counter() - started) / steps, "peak": resident_bytes("VmHWM")}

    def _random_cache(self, batch: int, context: int) -> Cache[Any]:
        rng = np.random.default_rng(0)
        layers = [
            tuple(rng.standard_normal(t.batch_shape(batch, context), dtype=np.float32) for t in decoded_layout(layer))
            for layer in self.session.layout
        ]
        return self.session.cache_from_arrays(layers, np.ones((batch, context), dtype=bool))


def main(make: Callable[[Contender], Any] = Worker) -> None:
    """Answer commands until stdin ends; the answer to a command that fails has its message under ``error``."""
    worker: Any = None
    for line in sys.stdin:
        command = json.loads(line)
        operation = command.pop("op")
        try:
            if operation == "open":
                worker = make(Contender(**{**command, "options": RuntimeOptions(**command["options"])}))
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
