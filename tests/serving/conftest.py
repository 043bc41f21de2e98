"""The fixtures of the servers' tests."""

from __future__ import annotations

import inspect
import logging

import httpx
import pytest

from tests.patience import PATIENCE
from tests.serving.patient_ray import patient_ray  # noqa: F401
from tests.serving.serving_tools import artifacts, reference, server, start  # noqa: F401
from tests.serving.tool_server import client, tool_server  # noqa: F401


@pytest.fixture
def serving_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What the servers log, each line once, also after a test in this process has set their log up."""
    logger = logging.getLogger("lucid_deploy.serving")
    for name, value in (("handlers", []), ("propagate", True)):
        monkeypatch.setattr(logger, name, value)
    caplog.set_level(logging.INFO, logger.name)
    return caplog


@pytest.fixture(scope="session", autouse=True)
def _patient_clients() -> None:
    """A client that says nothing waits for 5 s, which a slow machine may need: one object is the default of all."""
    default = inspect.signature(httpx.Client).parameters["timeout"].default
    default.connect = default.read = default.write = default.pool = PATIENCE
