"""Costly bodies of clients that leave, against a whole server."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import httpx

from tests.patience import PATIENCE
from tests.serving.reader_tools import ENDLESS
from tests.serving.serving_tools import MODEL, PROMPT, Start, replace_file


def test_clients_that_hang_up_leave_no_work_behind(start: Start, artifacts: dict[str, Path], tmp_path: Path) -> None:
    directory = Path(shutil.copytree(artifacts["growing"], tmp_path / "endless"))
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    replace_file(directory, "tokenizer_config.json", json.dumps({**settings, "chat_template": ENDLESS}).encode())
    server = start(directory)
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "fox " * 1000}]}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    for _ in range(40):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head.encode() + body)
    asked = {"model": MODEL, "prompt": PROMPT, "temperature": 0}
    answer = httpx.post(f"{server.url}/v1/completions", json=asked, timeout=PATIENCE)
    # Forty times five seconds would be longer than the client waits.
    assert answer.json()["choices"][0]["text"] == "blue cup"
