"""`lucid-deploy` with slow steps while a file exists: slow_server.py SECONDS_PER_STEP FILE ARGUMENTS…"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from lucid_deploy.batching import Batcher, Finished, Token
from lucid_deploy.cli import main


def slow_down(seconds: float, while_there: Path) -> None:
    parts = Batcher.parts

    def slow_parts(self: Batcher) -> Iterator[list[Token | Finished]]:
        end = time.monotonic() + seconds
        while while_there.exists() and time.monotonic() < end:
            time.sleep(0.005)
        yield from parts(self)

    Batcher.parts = slow_parts  # type: ignore[method-assign]


if __name__ == "__main__":
    slow_down(float(sys.argv[1]), Path(sys.argv[2]))
    main(sys.argv[3:], prog_name="lucid-deploy")
