"""Settings for a Ray cluster on a busy machine, so that Ray takes no process for dead because it answers late.

With 30 other processes on two cores, clusters ended like this: Ray Serve kills an HTTP proxy that is not ready within 5
seconds and starts another; code that waits for the first one gets an ``ActorDiedError``, a minute and a half after the
start. By default, Ray also takes a node for dead that misses five health checks of 10 seconds, and its memory monitor
kills workers when the machine has little memory left, whoever uses it. Ray's workers have niceness 15, so that they
hardly run beside processes of niceness 0. The cluster's folder is in ``TMPDIR``, which belongs to this test run, and
its ports are free ones.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.patience import PATIENCE
from tests.serving.serving_tools import MODEL, PROMPT

SETTINGS = {
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": str(PATIENCE),
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": str(PATIENCE),
    "RAY_health_check_timeout_ms": str(int(PATIENCE * 1000)),
    "RAY_worker_register_timeout_seconds": str(int(PATIENCE)),
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_worker_niceness": "0",
}


@pytest.fixture(scope="module")
def patient_ray() -> Iterator[None]:
    """Set :data:`SETTINGS` in the environment, for clusters that child processes start."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        yield


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def ask(client: openai.AsyncOpenAI, count: int, stream: bool) -> str:
    """Return the text of an answer; fail if a stream ends without its finish reason."""
    options: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "temperature": 0, "max_tokens": count}
    options["extra_body"] = {"ignore_eos": True}
    if not stream:
        return str((await client.completions.create(**options)).choices[0].text)
    text, reason = "", None
    async for chunk in await client.completions.create(**options, stream=True):
        text += chunk.choices[0].text
        reason = chunk.choices[0].finish_reason
    assert reason == "length", "a stream ended early and without an error"
    return text
