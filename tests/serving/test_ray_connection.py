"""A Ray cluster that cannot be joined or started is one line."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="the extra ray")

from ray.exceptions import RayActorError

from lucid_deploy.errors import LucidError
from lucid_deploy.serving import ray_cluster
from lucid_deploy.serving.loading import ApiOptions, EngineOptions
from lucid_deploy.serving.ray_cluster import ClusterOptions, application, connect

HERE = ClusterOptions("127.0.0.1", 0, None, 1, 1, 1.0, 0.0, 1.0, "info")


def refuse_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise error

    monkeypatch.setattr("ray.init", init)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionError("nobody there"), "No Ray cluster at this machine: nobody there"),
        (
            Exception("The current node timed out during startup. This could"),
            "Try again when this machine is less busy",
        ),
    ],
)
def test_what_keeps_it_from_starting_is_one_line(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_with(error, monkeypatch)
    with pytest.raises(LucidError, match=said):
        connect(HERE)


@pytest.mark.parametrize(("given", "found"), [(None, "60"), ("7", "7")])
def test_a_cluster_here_waits_for_its_proxy_as_long_as_we_do(
    given: str | None, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = ray_cluster.PROXY_PATIENCE[0]
    monkeypatch.setenv(name, given or "")
    if given is None:
        monkeypatch.delenv(name)
    said: list[str | None] = []
    monkeypatch.setattr("ray.init", lambda **_: said.append(os.environ.get(name)))
    connect(replace(HERE, address="elsewhere"))
    connect(HERE)
    assert said == [given, found]


DIED = "The actor died unexpectedly before finishing this task."


@pytest.mark.parametrize(
    "error", [TimeoutError("HTTP proxies not available after 60s."), RayActorError(error_msg=f"{DIED}\n\tpid: 7")]
)
def test_a_proxy_that_does_not_start_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    async def checked(_: object) -> None:
        pass

    def start(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray_cluster, "connect", lambda _: None)
    monkeypatch.setattr(ray_cluster, "check_setup", checked)
    monkeypatch.setattr(ray_cluster, "reader_setup", lambda *_: None)
    monkeypatch.setattr(ray_cluster.serve, "start", start)
    with pytest.raises(LucidError, match=r"^Ray's HTTP proxy did not start: .*\. Try again when .* busy\.$"):
        ray_cluster.serve_on_ray(
            EngineOptions("demo"), ApiOptions(), replace(HERE, port=1, address="here"), lambda: None
        )


def test_a_fault_of_another_kind_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_with(Exception("something else"), monkeypatch)
    with pytest.raises(Exception, match="something else") as found:
        connect(HERE)
    assert not isinstance(found.value, LucidError)


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
