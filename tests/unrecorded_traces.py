"""A pytest plugin: PyTorch's structured trace is recorded for nobody, which is a twelfth of the time of a trace.

pytest hands its handlers to every logger that passes nothing on. PyTorch's ``torch.__trace`` is one: it is silent as
long as it has no handler, and with one it describes each symbol and guard of a capture, with the stack.
"""

from __future__ import annotations

import logging

import pytest

LOGGER = "torch.__trace"


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    trace = logging.getLogger(LOGGER)
    trace.handlers.clear()
    trace.propagate = True
