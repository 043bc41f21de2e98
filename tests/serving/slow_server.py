"""`lucid-deploy` whose batcher takes its time while a file is there: slow_server.py SECONDS_PER_STEP FILE ARGUMENTS…

A request for FATAL new tokens ends the engine with an error.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from lucid_deploy.batching import Batcher, Finished, Request, Token
from lucid_deploy.cli import main

FATAL = 13


def slow_down(seconds: float, while_there: Path) -> None:
    parts, submit = Batcher.parts, Batcher.submit
    fatal = False

    def slow_parts(self: Batcher) -> Iterator[list[Token | Finished]]:
        end = time.monotonic() + seconds
        while while_there.exists() and time.monotonic() < end:
            time.sleep(0.005)
        if fatal:
            raise RuntimeError("this engine was told to end")
        yield from parts(self)

    def watched_submit(self: Batcher, request: Request) -> int:
        nonlocal fatal
        fatal = fatal or request.max_new_tokens == FATAL
        return submit(self, request)

    Batcher.parts = slow_parts  # type: ignore[method-assign]
    Batcher.submit = watched_submit  # type: ignore[method-assign]


if __name__ == "__main__":
    slow_down(float(sys.argv[1]), Path(sys.argv[2]))
    main(sys.argv[3:], prog_name="lucid-deploy")
