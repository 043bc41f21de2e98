"""While tests run, PyTorch's structured trace has no handler, so that its entries are never made."""

from __future__ import annotations

import logging

from torch._logging import trace_structured

from tests.unrecorded_traces import LOGGER


def test_no_entry_is_made() -> None:
    assert logging.getLogger(LOGGER).isEnabledFor(logging.DEBUG)  # with a handler there would be entries
    made: list[int] = []
    trace_structured("artifact", lambda: {"made": made.append(1)})
    assert made == []
    handler = logging.NullHandler()
    logging.getLogger(LOGGER).addHandler(handler)
    try:
        trace_structured("artifact", lambda: {"made": made.append(1)})
    finally:
        logging.getLogger(LOGGER).removeHandler(handler)
    assert made == [1]  # this is how they are made
