"""Paths and methods."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.serving.stand_ins import ScriptedBackend, client, service


def request(folder: Path, method: str, path: str, **more: Any) -> Any:
    async def run() -> Any:
        made = service(folder, ScriptedBackend(state=more.pop("state", "ready")))
        async with client(made) as http:
            return await http.request(method, path, **more)

    return asyncio.run(run())


def test_health(tmp_path: Path) -> None:
    for path in ("/healthz", "/health"):
        assert request(tmp_path, "GET", path).json() == {"status": "ok"}
        loading = request(tmp_path, "GET", path, state="loading")
        assert (loading.status_code, loading.json()) == (503, {"status": "loading"})
        for state, status in (("ready", 200), ("dead", 503)):
            assert request(tmp_path, "HEAD", path, state=state).status_code == status


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/redoc", 404, "not_found"),
        ("GET", "/v1/responses/resp_1", 404, "not_found"),
        ("GET", "/v1/responses", 405, "method_not_allowed"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
        ("POST", "/v1/embeddings", 404, "not_found"),
        ("GET", "/v1/models/../../etc/passwd", 404, "not_found"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("DELETE", "/healthz", 405, "method_not_allowed"),
        ("POST", "/v1/completions", 415, "unsupported_media_type"),
    ],
)
def test_what_there_is_not(method: str, path: str, status: int, code: str, tmp_path: Path) -> None:
    answer = request(tmp_path, method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    if code == "not_found":
        assert "This server generates text" in answer.json()["error"]["message"]


def test_other_sites_may_not_read(tmp_path: Path) -> None:
    answer = request(tmp_path, "GET", "/v1/models", headers={"Origin": "http://a.example"})
    assert "access-control-allow-origin" not in answer.headers
