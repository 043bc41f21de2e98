"""A new version is deployed on Ray Serve while clients ask: no request fails, and every answer is the right one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

pytest.importorskip("ray", reason="the extra ray")

import ray
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation

from lucid_deploy.serving.engine import EngineOptions
from lucid_deploy.serving.front import ApiOptions
from lucid_deploy.serving.ray_cluster import APPLICATION, ENGINE, ClusterOptions, application
from lucid_deploy.serving.ray_start import OBJECT_STORE_BYTES
from tests.patience import PATIENCE
from tests.serving.patient_ray import ask, free_port
from tests.serving.serving_tools import MODEL, PROMPT, Reference

CLIENTS, COUNT = 4, 60
pytestmark = pytest.mark.ray


@pytest.fixture
def port(patient_ray: None) -> Iterator[int]:
    """A cluster on this machine, as ``serve --engine ray`` starts one."""
    number = free_port()
    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
    )
    serve.start(proxy_location=ProxyLocation.HeadOnly, http_options=HTTPOptions(host="127.0.0.1", port=number))
    yield number
    serve.shutdown()
    ray.shutdown()


def deploy(directory: Path, rows: int) -> None:
    """Deploy the application, or replace what runs; return when that is done."""
    cluster = ClusterOptions("127.0.0.1", 0, None, 2, 2, 0.5, 0.0, 1, 60.0, "warning")
    engine = EngineOptions(str(directory), rows=rows)
    serve.run(application(engine, ApiOptions(MODEL, readers=1), cluster), name=APPLICATION, route_prefix="/")


def rows_of_an_engine() -> float:
    gauges = serve.get_deployment_handle(ENGINE, app_name=APPLICATION).gauges.remote().result(timeout_s=PATIENCE)
    return float(gauges["rows"])


async def ask_while(work: asyncio.Task[None], url: str) -> list[str]:
    """Ask from several clients until some work is done, and once more after it; an error ends the test."""
    answers: list[str] = []

    async def one(client: openai.AsyncOpenAI, stream: bool) -> None:
        while not work.done():
            answers.append(await ask(client, COUNT, stream))
        answers.append(await ask(client, COUNT, stream))

    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE)
    async with client, asyncio.TaskGroup() as group:
        for i in range(CLIENTS):
            group.create_task(one(client, bool(i % 2)))
    return answers


def test_a_new_version_replaces_the_old_one_without_a_failed_request(
    artifacts: dict[str, Path], reference: Reference, port: int
) -> None:
    deploy(artifacts["static"], rows=4)
    assert rows_of_an_engine() == 4

    async def run() -> list[str]:
        work = asyncio.create_task(asyncio.to_thread(deploy, artifacts["static"], 5))
        return await ask_while(work, f"http://127.0.0.1:{port}")

    answers = asyncio.run(run())
    assert rows_of_an_engine() == 5  # it is another one
    assert len(answers) > 2 * CLIENTS  # some came while replicas were replaced
    assert set(answers) == {reference.text(PROMPT, COUNT, eos=False)}
