"""What keeps an application from starting on Ray reaches the user in its own words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

pytest.importorskip("ray", reason="the extra ray")

from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
)

from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.runtimes import RuntimeOptions
from lucid_deploy.serving import ray_cluster, ray_start
from lucid_deploy.serving.loading import ApiOptions, EngineOptions
from lucid_deploy.serving.ray_cluster import ClusterOptions, RayBackend, application, on_any_machine
from lucid_deploy.serving.ray_start import delete, start_proxies, wait_until_running

HERE = ClusterOptions("127.0.0.1", 0, None, 1, 1, 1.0, 0.0, None, 1.0, "info")
# As Ray Serve 2.60 gave it for an engine that raised in __init__, cut in the middle.
RETRIES = """A replica failed to start with exception. Retrying 2 more time(s). Error:
\x1b[36mray::ServeReplica:a:Engine.initialize_and_get_metadata()\x1b[39m (pid=25813, ip=192.0.2.2)
  File "replica.py", line 1928, in initialize
    raise RuntimeError(traceback.format_exc()) from None
RuntimeError: Traceback (most recent call last):
  File "ray_cluster.py", line 14, in __init__
    raise error
    ^^^^^^^^^^^
"""
NO_LIBRARY = RETRIES + "lucid_deploy.errors.LucidError: There is no library of kernels."
DAMAGED = RETRIES + "lucid_deploy.errors.CheckFailed: weights.bin is damaged."
FAULT = RETRIES + "ZeroDivisionError: division by zero"
DEPLOYING, FAILED, RUNNING = ApplicationStatus.DEPLOYING, ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.RUNNING


def seen(status: ApplicationStatus, engine: str = "") -> ApplicationStatusOverview:
    parts = {
        name: DeploymentStatusOverview(
            DeploymentStatus.UPDATING, DeploymentStatusTrigger.CONFIG_UPDATE_STARTED, {}, message
        )
        for name, message in (("Api", ""), ("Engine", engine))
    }
    message = "Failed to update the deployments ['Engine']." if status == FAILED else ""
    return ApplicationStatusOverview(status, message, 0.0, parts)


def looks(*given: ApplicationStatusOverview | None) -> Callable[[], ApplicationStatusOverview | None]:
    left = list(given)
    return lambda: left.pop(0)


@pytest.mark.parametrize(("message", "kind"), [(NO_LIBRARY, LucidError), (DAMAGED, CheckFailed)])
@pytest.mark.parametrize("patient", [False, True])
def test_the_engines_own_words_come_to_the_user(message: str, kind: type[LucidError], patient: bool) -> None:
    """At once on a machine of ours; elsewhere after Ray's trials, which may find a machine that is in order."""
    given = [seen(DEPLOYING, message), *([seen(FAILED, message)] if patient else [])]
    with pytest.raises(LucidError) as found:
        wait_until_running(looks(None, seen(DEPLOYING), *given), patient)
    assert (type(found.value), str(found.value)) == (kind, message.rpartition(": ")[2])


def test_another_fault_is_named_with_the_deployment() -> None:
    with pytest.raises(LucidError) as found:
        wait_until_running(looks(seen(DEPLOYING, FAULT), seen(FAILED, FAULT)), False)
    assert str(found.value) == (
        "The application did not start on Ray: Failed to update the deployments ['Engine']. Engine: "
        "ZeroDivisionError: division by zero"
    )


def test_what_is_waited_for_is_logged_once(
    serving_log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_start, "POLL_SECONDS", 0.0)
    slow = "Deployment 'Engine' has 1 replicas that have taken more than 30s to be scheduled."
    wait_until_running(looks(seen(DEPLOYING, slow), seen(DEPLOYING, slow), seen(RUNNING)), True)
    assert [record.getMessage() for record in serving_log.records] == [f"Engine: {slow}"]


def test_deleting_waits_as_long_as_requests_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Serve itself gives up after a minute."""
    outcomes: list[Exception | None] = [TimeoutError("60s"), TimeoutError("60s"), None, TimeoutError("60s")]

    def once(_: str) -> None:
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome

    monkeypatch.setattr("ray.serve.delete", once)
    delete("name", 1000.0)
    assert len(outcomes) == 1
    delete("name", -1.0)
    assert not outcomes


DIED = "The actor died unexpectedly before finishing this task."


@pytest.mark.parametrize(
    "error", [TimeoutError("HTTP proxies not available after 60s."), RayActorError(error_msg=f"{DIED}\n\tpid: 7")]
)
def test_a_proxy_that_does_not_start_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(**_: object) -> None:
        raise error

    monkeypatch.setattr("ray.serve.start", start)
    with pytest.raises(LucidError, match=r"^Ray's HTTP proxy did not start: .*\. Try again when .* busy\.$"):
        start_proxies("127.0.0.1", 1, everywhere=True)


def test_engines_get_whole_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They run in directories of their own, where a path of this one leads nowhere."""
    monkeypatch.chdir(tmp_path)
    bound: list[EngineOptions] = []
    deployment = ray_cluster.serve.deployment

    def noted(target: object, **options: object) -> object:
        made = deployment(target, **options)  # type: ignore[call-overload]
        if options.get("name") == ray_cluster.ENGINE:
            bind = type(made).bind

            def remember(self: object, *given: object) -> object:
                bound.extend(each for each in given if isinstance(each, EngineOptions))
                return bind(self, *given)

            monkeypatch.setattr(type(made), "bind", remember)
        return made

    monkeypatch.setattr(ray_cluster.serve, "deployment", noted)
    application(EngineOptions("large", speculate="draft", draft="small"), ApiOptions(), HERE)
    assert [(each.directory, each.draft) for each in bound] == [(str(tmp_path / "large"), str(tmp_path / "small"))]


@pytest.mark.parametrize("high", [1, 2])
def test_engines_may_reserve_every_processor(monkeypatch: pytest.MonkeyPatch, high: int) -> None:
    reserved: dict[object, object] = {}
    deployment = ray_cluster.serve.deployment

    def noted(target: object, **options: object) -> object:
        reserved[options["name"]] = options["ray_actor_options"]
        return deployment(target, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(ray_cluster.serve, "deployment", noted)
    application(EngineOptions("artifact"), ApiOptions(), replace(HERE, high=high, cpus=2.0, gpus=0.5))
    assert reserved == {ray_cluster.ENGINE: {"num_cpus": 2.0, "num_gpus": 0.5}, "Api": {"num_cpus": 0}}


@pytest.mark.parametrize(("to_zero", "state"), [(False, "loading"), (True, "ready")])
def test_where_no_engine_may_be_none_is_asked_how_it_is(to_zero: bool, state: str) -> None:
    """A question would start one, and keep it; requests wait for it instead of a 503."""
    asked: list[str] = []

    class Method:
        async def remote(self) -> None:
            asked.append("gauges")

    class Handle:
        gauges = Method()

        def options(self, **_: object) -> Handle:
            return self

    async def run() -> str:
        backend = RayBackend(cast(DeploymentHandle, Handle()), to_zero)
        first = backend.state
        while not to_zero and backend.state != "ready":
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        return first

    assert asyncio.run(run()) == state
    assert bool(asked) is not to_zero


@pytest.mark.parametrize(
    ("runtime", "asked", "shared", "found"),
    [
        ("auto", None, 2, 2),
        ("torch", None, 2, 2),
        ("auto", 3, 2, 3),
        ("auto", None, None, None),
        ("tensorrt", None, 2, None),  # it heeds none
    ],
)
def test_engines_share_processors_unless_told_otherwise(
    runtime: str, asked: int | None, shared: int | None, found: int | None
) -> None:
    engine = on_any_machine(EngineOptions("here", RuntimeOptions(runtime, threads=asked)), shared)
    assert (engine.runtime.threads, engine.directory) == (found, str(Path.cwd() / "here"))
