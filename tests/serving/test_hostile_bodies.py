"""Bodies that are large, costly or never end, against a whole server: others are answered, memory stays bounded."""

from __future__ import annotations

import concurrent.futures
import json
import shutil
import socket
from pathlib import Path

import httpx

from tests.patience import PATIENCE
from tests.serving.reader_tools import ENDLESS
from tests.serving.serving_tools import MODEL, PROMPT, Server, Start, replace_file


def with_template(artifacts: dict[str, Path], target: Path, template: str) -> Path:
    """Copy an artifact and give it another chat template."""
    directory = Path(shutil.copytree(artifacts["growing"], target))
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    replace_file(directory, "tokenizer_config.json", json.dumps({**settings, "chat_template": template}).encode())
    return directory


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


def test_clients_that_hang_up_leave_no_work_behind(start: Start, artifacts: dict[str, Path], tmp_path: Path) -> None:
    server = start(with_template(artifacts, tmp_path / "endless", ENDLESS))
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "fox " * 1000}]}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    for _ in range(40):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head.encode() + body)
    assert ask(server) == "blue cup"  # forty times five seconds would be longer than the client waits
