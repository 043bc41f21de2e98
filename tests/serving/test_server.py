"""Loading, leaving clients, time limits, and shutting down."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from click.testing import CliRunner

from lucid_deploy.cli import main
from tests.patience import PATIENCE
from tests.serving.serving_tools import MODEL, PROMPT, Server, Start

STEP = 0.25  # seconds of a step until Server.hurry; the longest generation, of 400 tokens, then takes at least 100 s


def body(count: int = 400, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": PROMPT, "max_tokens": count, "ignore_eos": True, "temperature": 0, **more}


def metric(server: Server, name: str) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name)


def answers(server: Server) -> dict[str, int]:
    """Return how many completions ended with each status."""
    text = httpx.get(f"{server.url}/metrics").text
    found = re.findall(r'^lucid_requests_total\{path="/v1/completions",status="(\d+)"\} (\S+)$', text, re.M)
    return {status: int(float(count)) for status, count in found}


def wait_for(condition: Any) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


class Asking(threading.Thread):
    """Sends a request in a thread, which then sets ``answer`` or ``error``."""

    def __init__(self, server: Server, data: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.server, self.data = server, data
        self.answer: httpx.Response | None = None
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.answer = httpx.post(f"{self.server.url}/v1/completions", json=self.data, timeout=PATIENCE)
        except httpx.TransportError as error:
            self.error = error

    def result(self) -> httpx.Response:
        self.join(PATIENCE)
        assert self.answer is not None, self.error
        return self.answer


def test_a_client_that_leaves_frees_its_row(start: Start, artifacts: dict[str, Path]) -> None:
    server = start(artifacts["static"], "--rows", 1, "--max-queue", 2, "--allow-host", "Model.Example", slow=STEP)
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body(stream=True), timeout=PATIENCE) as stream:
        lines = stream.iter_lines()  # kept: dropping this iterator would close the stream
        next(lines)
        waiting = Asking(server, body(2))
        wait_for(lambda: metric(server, "lucid_queue_length") == 1)
        assert metric(server, "lucid_active_rows") == 1
        assert metric(server, "lucid_cache_tokens") > 18
    assert waiting.result().status_code == 200
    assert metric(server, "lucid_generated_tokens_total") < 400  # so the one that left did not get all of its tokens
    wait_for(lambda: metric(server, "lucid_active_rows") == 0)
    assert metric(server, "lucid_cache_tokens") == 0
    assert answers(server) == {"200": 1, "499": 1}  # the stream too, though 200 had been sent

    with socket.create_connection(("127.0.0.1", server.port)) as connection:  # not streamed: nothing was sent yet
        data = json.dumps(body()).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        wait_for(lambda: metric(server, "lucid_active_rows") == 1)
    wait_for(lambda: metric(server, "lucid_active_rows") == 0)
    wait_for(lambda: answers(server) == {"200": 1, "499": 2})
    assert "closed the connection before the answer was complete" in httpx.get(f"{server.url}/metrics").text

    queued = [Asking(server, body(100)) for _ in range(3)]
    wait_for(lambda: metric(server, "lucid_queue_length") == 2)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.RateLimitError) as error:
            client.completions.create(model=MODEL, prompt=PROMPT)
        assert 1 <= int(error.value.response.headers["Retry-After"]) <= 60
    server.hurry()
    assert [asking.result().status_code for asking in queued] == [200] * 3
    for name, status in [
        ("evil.example", 403),
        ("model.example:80", 200),
        ("localhost", 200),
        ("[::1]:5", 200),
        ("127.0.0.1.evil.example", 403),
    ]:
        assert httpx.get(f"{server.url}/v1/models", headers={"Host": name}).status_code == status, name
    assert server.stop() == 0
    assert not any("WARNING: listening" in line for line in server.errors)


def test_the_time_limit_holds_in_the_queue_and_in_a_row(start: Start, artifacts: dict[str, Path]) -> None:
    server = start(artifacts["growing"], "--rows", 1, "--timeout", 2, slow=STEP)
    running, queued = Asking(server, body()), Asking(server, body())
    for asking in (running, queued):
        answer = asking.result()
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    streamed = httpx.post(f"{server.url}/v1/completions", json=body(stream=True), timeout=PATIENCE)
    events = [line for line in streamed.text.split("\n\n") if line]  # of tokens, as far as they came, and the error
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "timeout"
    assert "[DONE]" not in streamed.text
    options: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "max_tokens": 400, "stream": True}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        stream: Any = client.completions.create(**options, extra_body={"ignore_eos": True})
        with pytest.raises(openai.APIError, match="longer than"):
            list(stream)
    wait_for(lambda: metric(server, "lucid_active_rows") == 0)
    server.hurry()
    wait_for(lambda: httpx.post(f"{server.url}/v1/completions", json=body(3)).status_code == 200)


def test_at_shutdown_running_requests_finish_and_new_ones_are_refused(start: Start, artifacts: dict[str, Path]) -> None:
    server = start(artifacts["growing"], slow=STEP)
    whole, streamed = Asking(server, body(60)), Asking(server, body(60, stream=True))
    wait_for(lambda: metric(server, "lucid_active_rows") == 2)
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: httpx.get(f"{server.url}/healthz").status_code == 503)
    refused = httpx.post(f"{server.url}/v1/completions", json=body(3))
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
    server.hurry()
    assert server.process.wait(PATIENCE) == 0
    assert whole.result().json()["usage"]["completion_tokens"] == 60
    assert streamed.result().text.endswith("data: [DONE]\n\n")


def test_after_grace_requests_end_with_an_error(start: Start, artifacts: dict[str, Path]) -> None:
    server = start(artifacts["growing"], "--host", "0.0.0.0", "--grace", 0.5, slow=STEP)
    assert any("WARNING: listening on 0.0.0.0 without API keys" in line for line in server.errors)
    whole, streamed = Asking(server, body()), Asking(server, body(stream=True))
    wait_for(lambda: metric(server, "lucid_active_rows") == 2)
    assert server.stop() == 0
    assert whole.result().status_code == 503  # and not 200, with all tokens
    assert '"code":"shutting_down"' in streamed.result().text
    assert "[DONE]" not in streamed.result().text


def test_a_port_in_use_is_refused(artifacts: dict[str, Path]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(main, ["serve", str(artifacts["growing"]), "--port", str(port)])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: Port {port} on 127.0.0.1 cannot be used: Address already in use.")


@pytest.mark.parametrize(
    ("package", "options", "needed"),
    [("starlette", [], "uvicorn<"), ("ray", ["--engine", "ray"], "ray[serve]<")],
)
def test_a_missing_package_names_its_extra(
    artifacts: dict[str, Path], package: str, options: list[str], needed: str
) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from lucid_deploy.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", str(artifacts["plain"]), *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"Error: The package {package} is needed to serve")
    assert f'"{needed}' in result.stderr.partition("Run: pip install ")[2]
