"""`lucid-deploy` whose readers have less processor time for a request: strict_server.py SECONDS ARGUMENTS…"""

from __future__ import annotations

import functools
import sys

from lucid_deploy.cli import main
from lucid_deploy.serving import loading
from lucid_deploy.serving.requests import Limits


def bound_reading(seconds: float) -> None:
    loading.Limits = functools.partial(Limits, reading_seconds=seconds)  # type: ignore[misc, assignment]


if __name__ == "__main__":
    bound_reading(float(sys.argv[1]))
    main(sys.argv[2:], prog_name="lucid-deploy")
