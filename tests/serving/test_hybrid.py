"""The server with a hybrid, whose caches hold states: answers are PyTorch's, whoever else is in the batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.generation.generate import Generation
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.hybrid_artifact import VOCABULARY
from tests.patience import PATIENCE
from tests.serving.serving_tools import MODEL, Server, Start
from tests.serving.test_prefix_cache import REUSED, metric, write_keys
from tests.serving.test_server import wait_for

NEW = 12
LENGTHS = (3, 41, 1, 17, 70, 9)


def prompt(n: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(1, VOCABULARY, n).tolist()


class Expected:
    """What PyTorch generates from the checkpoint, a prompt by itself."""

    def __init__(self, artifact: Artifact) -> None:
        self.session: Any = TorchSession(load_model(Checkpoint(artifact.manifest.source)))

    def text(self, ids: list[int], count: int = NEW) -> str:
        return " ".join(f"w{token}" for token in Generation(self.session, ids, count, stop_at_eos=False))


@pytest.fixture(scope="module")
def expected(hybrid: Callable[..., Artifact]) -> Expected:
    return Expected(hybrid())


def body(ids: list[int], count: int = NEW, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": ids, "max_tokens": count, "ignore_eos": True, "temperature": 0, **more}


def ask(server: Server, ids: list[int], **more: Any) -> str:
    answer = httpx.post(f"{server.url}/v1/completions", json=body(ids, **more), timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    if not more.get("stream"):
        return str(answer.json()["choices"][0]["text"])
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert events.pop() == "[DONE]"
    return "".join(choice["text"] for event in events for choice in json.loads(event)["choices"])


@pytest.mark.parametrize("cache", ["growing", "static"])
def test_requests_of_different_lengths_at_once(
    start: Start, hybrid: Callable[..., Artifact], expected: Expected, cache: str
) -> None:
    server = start(hybrid(cache=cache).directory, "--rows", 3, "--prefill-chunk", 16)
    prompts = [prompt(n, seed=n) for n in LENGTHS]
    wanted = [expected.text(ids) for ids in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        found = pool.map(lambda pair: ask(server, pair[1], stream=pair[0] % 2 == 1), enumerate(prompts))
        assert [text.strip() for text in found] == wanted
    assert server.stop() == 0


def test_stored_beginnings_and_a_client_that_leaves(
    start: Start, hybrid: Callable[..., Artifact], expected: Expected, tmp_path: Path
) -> None:
    options = ["--rows", 1, "--prefill-chunk", 8, "--prefix-cache-tokens", 500]
    options += ["--metrics-key-file", write_keys(tmp_path / "metrics", "metrics-key")]  # its counters are exact
    server = start(hybrid().directory, *options, slow=0.25)
    system = prompt(40, seed=3)
    url = f"{server.url}/v1/completions"
    with httpx.stream("POST", url, json=body([*system, 5], 100, stream=True), timeout=PATIENCE) as stream:
        next(stream.iter_lines())
    wait_for(lambda: metric(server, "lucid_active_rows") == 0)
    assert metric(server, "lucid_generated_tokens_total") < 100
    server.hurry()
    # Its row is clean, and what was stored of its prompt serves others: after four chunks, and all of it.
    for ids, reused in (([*system[:33], 9, 9], 32), ([*system, 5, 6], 41), (prompt(20, seed=9), 0)):
        before = metric(server, REUSED)
        assert ask(server, ids).strip() == expected.text(ids), ids
        assert metric(server, REUSED) - before == reused
    assert server.stop() == 0
