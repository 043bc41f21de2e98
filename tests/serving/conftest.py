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
    """Capture what the servers log, each line once, even if another test has set up their logging before."""
    logger = logging.getLogger("lucid_deploy.serving")
    for name, value in (("handlers", []), ("propagate", True)):
        monkeypatch.setattr(logger, name, value)
    caplog.set_level(logging.INFO, logger.name)
    return caplog


@pytest.fixture(scope="session", autouse=True)
def _patient_clients() -> None:
    """Raise httpx's default timeout of 5 s, which a slow machine may exceed; all its functions share one object."""
    default = inspect.signature(httpx.Client).parameters["timeout"].default
    default.connect = default.read = default.write = default.pool = PATIENCE
