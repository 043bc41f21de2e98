"""/v1/lucid/solve: a real server's numbers, and what a backend refuses."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.runtimes.solve_weights import solve_weights
from lucid_deploy.runtimes.torch.session import TorchSession
from lucid_deploy.serving.errors import ApiError
from tests.patience import PATIENCE
from tests.serving.serving_tools import MODEL, PROMPT, Reference, Server
from tests.serving.stand_ins import ScriptedBackend, client, service

DIGITS = 5e-6  # numbers come with six
BODY = {"model": MODEL, "prompt": PROMPT, "layer": 1, "head": 0}


def rounding_of(directory: Path, ids: list[int]) -> dict[str, float]:
    """Return what two caches may differ by: each by four times the error of PyTorch's float32, as ``verify`` gives."""
    rounded, exact = (
        solve_weights(TorchSession(load_model(directory, dtype)), ids, 1, 0) for dtype in (torch.float32, torch.float64)
    )
    names = ("subtracted", "coefficients")
    return {name: 8 * np.abs(getattr(rounded, name) - getattr(exact, name)).max() for name in names}


def test_a_server_gives_the_weights_of_the_session(server: Server, reference: Reference, demo_directory: Path) -> None:
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as http:
        assert http.get("/v1/models").json()["data"][0]["has_chat_template"] is True
        layers = http.get("/v1/lucid/solve").json()
        assert ([item["layer"] for item in layers["data"]], layers["max_tokens"]) == ([0, 1, 2], 256)
        found = http.post("/v1/lucid/solve", json=BODY).json()
        ids = reference.tokenizer.encode(PROMPT)
        own = solve_weights(reference.session, ids, 1, 0)
        rounding = rounding_of(demo_directory, ids)
        assert found["ids"] == ids and found["tokens"][1:4] == ["fox", "has", "red"]
        for name in ("subtracted", "coefficients"):
            rows = [np.array(row) for row in found[name]]
            assert [len(row) for row in rows] == [i + (name == "coefficients") for i in range(len(ids))]
            for i, row in enumerate(rows):
                error = np.abs(row - getattr(own, name)[i, : len(row)])
                assert (error <= DIGITS * np.abs(row) + rounding[name]).all()
        for field, said in (
            ("layer", "layers 0 to 2, not 77. Layers that solve a system: 0, 1, 2."),
            ("head", "not 77."),
        ):
            refused = http.post("/v1/lucid/solve", json={**BODY, field: 77})
            error = refused.json()["error"]
            assert (refused.status_code, error["param"], error["code"]) == (400, field, "invalid_value")
            assert error["message"].endswith(said)
        answer = http.post("/v1/completions", json={"model": MODEL, "prompt": PROMPT, "temperature": 0})
        assert answer.json()["choices"][0]["text"] == "blue cup"


class SolvingBackend(ScriptedBackend):
    """Refuses one and does the other."""

    async def call(self, _: Any) -> Any:
        raise ApiError(501, "not here", "not_supported")

    async def solve(self, ids: list[int], layer: int, head: int, adapter: str | None = None) -> Any:
        return {"ids": ids, "place": [layer, head]}


def ask(folder: Path, method: str, **settings: Any) -> Any:
    body = {"json": {"model": "m", "prompt": "w1 w2", "layer": 4, "head": 5}} if method == "POST" else {}

    async def run() -> Any:
        async with client(service(folder, SolvingBackend(), **settings)) as http:
            return await http.request(method, "/v1/lucid/solve", **body)

    return asyncio.run(run())


def test_what_a_backend_gives_or_refuses(tmp_path: Path) -> None:
    assert ask(tmp_path, "POST").json() == {"ids": [1, 2], "place": [4, 5]}
    answer = ask(tmp_path, "GET")
    assert (answer.status_code, answer.json()["error"]["code"]) == (501, "not_supported")


def test_it_is_off_together_with_the_pages(tmp_path: Path) -> None:
    for method in ("GET", "POST"):
        assert ask(tmp_path, method, pages=False).status_code == 404
