"""`lucid-deploy` whose batcher takes its time: slow_server.py SECONDS_PER_STEP ARGUMENTS…

A request for FATAL new tokens ends the engine with an error.
"""

from __future__ import annotations

import sys
import time

from lucid_deploy.batching import Batcher, Finished, Request, Token
from lucid_deploy.cli import main

FATAL = 13


def slow_down(seconds: float) -> None:
    step, submit = Batcher.step, Batcher.submit
    fatal = False

    def slow_step(self: Batcher) -> list[Token | Finished]:
        time.sleep(seconds)
        if fatal:
            raise RuntimeError("this engine was told to end")
        return step(self)

    def watched_submit(self: Batcher, request: Request) -> int:
        nonlocal fatal
        fatal = fatal or request.max_new_tokens == FATAL
        return submit(self, request)

    Batcher.step = slow_step  # type: ignore[method-assign]
    Batcher.submit = watched_submit  # type: ignore[method-assign]


if __name__ == "__main__":
    slow_down(float(sys.argv[1]))
    main(sys.argv[2:], prog_name="lucid-deploy")
