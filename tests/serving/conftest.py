"""The fixtures of the servers' tests."""

from tests.serving.serving_tools import artifacts, reference, server, start  # noqa: F401
