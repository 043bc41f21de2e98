"""The fixtures of the servers' tests."""

from serving_tools import artifacts, reference, server, start  # noqa: F401
