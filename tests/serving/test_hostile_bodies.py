"""Bodies that are large, costly or never end, against a whole server: others are answered, memory stays bounded."""

from __future__ import annotations

import concurrent.futures
import json
import os
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.patience import PATIENCE
from tests.serving.reader_tools import ENDLESS
from tests.serving.serving_tools import MODEL, PROMPT, Server, Start, replace_file

MB = 1 << 20


def with_template(artifacts: dict[str, Path], target: Path, template: str) -> Path:
    """Copy an artifact and give it another chat template."""
    directory = Path(shutil.copytree(artifacts["growing"], target))
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    replace_file(directory, "tokenizer_config.json", json.dumps({**settings, "chat_template": template}).encode())
    return directory


def memory(server: Server) -> int:
    """Return the resident bytes of the server and its readers."""
    total, pids = 0, [server.process.pid]
    while pids:
        folder = Path(f"/proc/{pids.pop()}")
        try:
            total += int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            pids += map(int, (folder / "task" / folder.name / "children").read_text().split())
        except FileNotFoundError:
            continue
    return total


class Peak(threading.Thread):
    """The most memory that a server has while this runs, and whether it is healthy all the time."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self.server, self.most, self.checks = server, 0, 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.05):
            self.most = max(self.most, memory(self.server))
            assert httpx.get(f"{self.server.url}/healthz").status_code == 200
            self.checks += 1

    def __enter__(self) -> Peak:
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.over.set()
        self.join()


def ask(server: Server) -> str:
    body = {"model": MODEL, "prompt": PROMPT, "temperature": 0}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=PATIENCE)
    return str(answer.json()["choices"][0]["text"])


def test_a_template_without_end_stops_nobody_else(start: Start, artifacts: dict[str, Path], tmp_path: Path) -> None:
    server = start(with_template(artifacts, tmp_path / "endless", ENDLESS), reading=1.0)
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "fox"}]}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        url = f"{server.url}/v1/chat/completions"
        asking = [pool.submit(httpx.post, url, json=chat, timeout=PATIENCE) for _ in range(2)]
        assert httpx.get(f"{server.url}/healthz", timeout=PATIENCE).status_code == 200
        assert ask(server) == "blue cup"
        for future in asking:
            error = future.result().json()["error"]
            assert (future.result().status_code, error["code"]) == (400, "too_costly")
            assert "more than 1 s of processor time" in error["message"]


def test_a_server_stops_before_a_template_without_end_does(
    start: Start, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    server = start(with_template(artifacts, tmp_path / "endless", ENDLESS), reading=10 * PATIENCE)
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "fox"}]}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        last = pool.submit(httpx.post, f"{server.url}/v1/chat/completions", json=chat, timeout=PATIENCE)
        time.sleep(0.3)
        assert server.stop() == 0
        assert last.result().status_code == 503


def test_the_time_limit_of_a_request_counts_while_it_is_read(
    start: Start, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    server = start(with_template(artifacts, tmp_path / "endless", ENDLESS), "--timeout", 1)
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "fox"}]}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=chat, timeout=PATIENCE)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")


@pytest.mark.parametrize("kind", ["long text", "many lists"])
def test_many_of_the_largest_bodies_at_once(kind: str, start: Start, artifacts: dict[str, Path]) -> None:
    """Forty clients at once: each is told why, others are answered meanwhile, and memory stays within what is said."""
    server = start(artifacts["growing"], "--timeout", int(PATIENCE))
    prompt = '"' + "fox has red lamp " * (4 * MB // 17 - 20) + '"'
    if kind == "many lists":
        prompt = "[" + "[]," * (4 * MB // 3 - 40) + "[]]"
    body = f'{{"model": "{MODEL}", "prompt": {prompt}}}'.encode()
    assert 3.9 * MB < len(body) <= 4 * MB

    def post(_: int) -> tuple[int, str]:
        headers = {"Content-Type": "application/json"}
        answer = httpx.post(f"{server.url}/v1/completions", content=body, headers=headers)
        return answer.status_code, answer.json()["error"]["code"]

    quiet = memory(server)
    with concurrent.futures.ThreadPoolExecutor(40) as pool, Peak(server) as peak:
        codes = set(pool.map(post, range(40)))
        assert ask(server) == "blue cup"
    assert (400, "context_length_exceeded" if kind == "long text" else "invalid_value") in codes
    assert codes <= {(400, "context_length_exceeded"), (400, "invalid_value"), (503, "too_many_bodies")}
    assert peak.checks > 0
    # 16 bodies of 4 MiB, their copies on the way to a reader, and twice 256 MiB in the readers.
    assert peak.most - quiet < 2 * 16 * 4 * MB + 2 * 256 * MB


def test_clients_that_hang_up_leave_no_work_behind(start: Start, artifacts: dict[str, Path], tmp_path: Path) -> None:
    server = start(with_template(artifacts, tmp_path / "endless", ENDLESS))
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "fox " * 1000}]}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    for _ in range(40):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head.encode() + body)
    assert ask(server) == "blue cup"  # forty times five seconds would be longer than the client waits
