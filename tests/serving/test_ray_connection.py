"""A Ray cluster that cannot be joined or started is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("ray", reason="the extra ray")

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
