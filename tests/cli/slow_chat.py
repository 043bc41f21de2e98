"""`lucid-deploy` whose decoding takes its time: slow_chat.py SECONDS_PER_TOKEN ARGUMENTS…"""

from __future__ import annotations

import sys
import time
from typing import Any

from lucid_deploy.cli import main
from lucid_deploy.runtimes.session import Session


def slow_down(seconds: float) -> None:
    decode = Session.decode

    def slow_decode(self: Session[Any], *arguments: Any) -> Any:
        time.sleep(seconds)
        return decode(self, *arguments)

    Session.decode = slow_decode  # type: ignore[method-assign]


if __name__ == "__main__":
    slow_down(float(sys.argv[1]))
    main(sys.argv[2:], prog_name="lucid-deploy")
