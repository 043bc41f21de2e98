"""The fixtures of the servers' tests."""

from __future__ import annotations

import inspect

import httpx
import pytest

from tests.patience import PATIENCE
from tests.serving.patient_ray import patient_ray  # noqa: F401
from tests.serving.serving_tools import artifacts, reference, server, start  # noqa: F401


@pytest.fixture(scope="session", autouse=True)
def _patient_clients() -> None:
    """A client that says nothing waits for 5 s, which a slow machine may need: one object is the default of all."""
    default = inspect.signature(httpx.Client).parameters["timeout"].default
    default.connect = default.read = default.write = default.pool = PATIENCE
