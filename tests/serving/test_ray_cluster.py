"""A local Ray cluster with two engines: streams pass through; if one is killed, its clients get at most an error."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest

from tests.patience import PATIENCE
from tests.serving.patient_ray import ask, free_port
from tests.serving.serving_tools import MODEL, PROMPT, Reference, Server

pytest.importorskip("ray", reason="the extra ray")
COUNT = 250
pytestmark = pytest.mark.compat  # a cluster takes half a minute to start


@pytest.fixture(scope="module")
def cluster(artifacts: dict[str, Path], patient_ray: None) -> Iterator[Server]:
    words = ["serve", str(artifacts["static"]), "--port", str(free_port()), "--served-model-name", MODEL]
    scale = ["--engine", "ray", "--replicas", "2", "--replica-cpus", "1", "--rows", "4", "--grace", "5"]
    running = Server(["-m", "lucid_deploy.cli", *words, *scale])
    yield running
    assert running.stop() == 0
    assert running.process.stdout is not None
    assert "Error" not in running.process.stdout.read() + "".join(running.errors)  # Ray's red lines among them


def processes(server: Server) -> dict[int, str]:
    """Return the command lines of the server's process and all its descendants, by process id."""
    parents, titles = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            stat, title = (path / "stat").read_text(), (path / "cmdline").read_text()
        except OSError:
            continue
        parents[int(path.name)] = int(stat.rpartition(")")[2].split()[1])
        titles[int(path.name)] = title

    def belongs(pid: int) -> bool:
        while pid in parents and pid != server.process.pid:
            pid = parents[pid]
        return pid == server.process.pid

    return {pid: title for pid, title in titles.items() if belongs(pid)}


def replicas(server: Server, name: str) -> list[int]:
    """Return the process ids of the replicas of a deployment."""
    return [pid for pid, title in processes(server).items() if f"ServeReplica:lucid-deploy:{name}" in title]


def listening() -> set[str]:
    """Return the addresses and ports, in the kernel's hexadecimal, on which any process listens."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {words[1] for words in lines if words[3] == "0A"}


def test_the_error_of_a_stuck_engine_says_so() -> None:
    from lucid_deploy.serving.ray_cluster import EngineReplica

    stuck: Any = SimpleNamespace(_backend=SimpleNamespace(state="stuck", engine=SimpleNamespace(error=None)))
    with pytest.raises(RuntimeError, match="not running: stuck"):
        EngineReplica.check_health(stuck)


def test_the_api_listens_on_this_machine_only(cluster: Server) -> None:
    assert {address for address in listening() if address.endswith(f":{cluster.port:04X}")} == {
        f"0100007F:{cluster.port:04X}"
    }


async def load(server: Server, clients: int, rounds: int, victim: int | None = None) -> list[str | openai.OpenAIError]:
    """Ask from many clients, kill a process meanwhile, and return every outcome."""
    out: list[str | openai.OpenAIError] = []

    async def one(client: openai.AsyncOpenAI, stream: bool) -> None:
        for _ in range(rounds):
            try:
                out.append(await ask(client, COUNT, stream))
            except openai.OpenAIError as error:
                out.append(error)

    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE)
    async with client, asyncio.TaskGroup() as group:
        for i in range(clients):
            group.create_task(one(client, bool(i % 2)))
        if victim is not None:
            while not out:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)  # the next requests have begun: before that, another engine takes them over
            os.kill(victim, signal.SIGKILL)
    return out


def come_as_they_are_made(client: openai.OpenAI) -> bool:
    """Return whether a stream's first token came in the first half of the time that all tokens took."""
    began, times = time.perf_counter(), []
    stream: Any = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=COUNT, stream=True, extra_body={"ignore_eos": True}
    )
    for _ in stream:
        times.append(time.perf_counter() - began)
    return times[0] < 0.5 * times[-1]


def test_answers_and_streams_pass_through(cluster: Server, reference: Reference) -> None:
    assert len(replicas(cluster, "Engine")) == 2
    assert httpx.get(f"{cluster.url}/healthz").json() == {"status": "ok"}
    expected = reference.text(PROMPT, COUNT, eos=False)
    assert asyncio.run(load(cluster, 8, 1)) == [expected] * 8
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="other", prompt=PROMPT)
        while not come_as_they_are_made(client):  # never ends if streams are held back; a busy machine passes later
            pass


def test_a_killed_replica_loses_no_request_without_an_error(cluster: Server, reference: Reference) -> None:
    expected = reference.text(PROMPT, COUNT, eos=False)
    victim = replicas(cluster, "Engine")[0]
    outcomes = asyncio.run(load(cluster, 12, 2, victim))
    assert len(outcomes) == 24
    failed = [outcome for outcome in outcomes if isinstance(outcome, openai.OpenAIError)]
    assert [outcome for outcome in outcomes if isinstance(outcome, str)] == [expected] * (24 - len(failed))
    assert 0 < len(failed) < 20  # the killed engine was at work, and the other one went on
    assert asyncio.run(load(cluster, 6, 1)) == [expected] * 6
