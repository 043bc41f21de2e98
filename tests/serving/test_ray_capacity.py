"""What no machine can hold is refused, what only a larger cluster can hold waits for it."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("ray", reason="the extra ray")

from lucid_deploy.errors import LucidError
from lucid_deploy.serving import ray_capacity
from lucid_deploy.serving.ray_capacity import Machine, Need, lack, may_grow, wait_for_room
from tests.patience import PATIENCE

ONE, SMALL, LARGE = Machine(1.0, 0.0), Machine(2.0, 0.0), Machine(8.0, 4.0)


@pytest.mark.parametrize(
    ("need", "cluster", "said"),
    [
        (
            Need(1, 100.0, 0.0),
            [SMALL, LARGE],
            "an engine, which reserves 100 processors: .* 8 processors and up to 4 GPUs",
        ),
        (Need(1, 1.0, 1.0), [SMALL], "reserves 1 processor and 1 GPU: they have up to 2 processors and up to 0 GPUs"),
        (Need(1, 3.0, 1.0), [SMALL, Machine(1.0, 8.0)], "No machine"),  # processors here, GPUs there
        (Need(1, 1.0, 0.0), [], "No machine"),
        (Need(4, 1.0, 0.0), [SMALL], r"has room for 2 of 4 engines; each reserves 1 processor\."),
        (Need(4, 1.5, 0.0), [SMALL] * 3, "room for 3 of 4"),  # 6 processors, of which half a one is left on each
        (Need(1, 1.0, 0.0), [ONE], None),  # the defaults on the smallest machine
        (Need(2, 1.0, 0.0), [SMALL], None),
        (Need(20, 0.1, 0.0), [SMALL], None),
        (Need(9, 0.0, 0.0), [SMALL], None),
        (Need(8, 0.5, 0.5), [SMALL, LARGE], None),
        (Need(9, 0.5, 0.5), [SMALL, LARGE], "room for 8 of 9"),
        (Need(4, 1.0, 0.7), [LARGE], None),
        (
            Need(5, 1.0, 0.7),
            [LARGE],
            "room for 4 of 5 engines; each reserves 1 processor and 0.7 GPUs",
        ),  # 2.8 are no use
        (Need(12, 0.1, 0.3), [LARGE], None),
        (Need(40, 0.1, 0.1), [LARGE], None),
        (Need(13, 0.1, 0.3), [LARGE], "room for 12 of 13"),
        (Need(2, 1.0, 2.0), [LARGE], None),
        (Need(3, 1.0, 2.0), [LARGE], "room for 2 of 3"),
    ],
)
def test_what_is_lacking(need: Need, cluster: list[Machine], said: str | None) -> None:
    found = lack(need, cluster)
    if said is None:
        assert found is None
    else:
        with pytest.raises(LucidError, match=said):
            raise LucidError(found)


class Cluster:
    """Machines with two processors, one more each time that somebody looks; those that are gone have many."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int = 1, grows: bool = False) -> None:
        self.looks, self.most = 0, most
        monkeypatch.setattr("ray.nodes", self.nodes)
        monkeypatch.setattr(ray_capacity, "has_autoscaler", lambda: grows)
        monkeypatch.setattr(ray_capacity, "POLL_SECONDS", 0.001)

    def nodes(self) -> list[dict[str, Any]]:
        self.looks += 1
        alive = {"Alive": True, "Resources": {"CPU": 2.0}}
        return [alive] * min(self.looks, self.most) + [{"Alive": False, "Resources": {"CPU": 64.0, "GPU": 1.0}}]


def test_a_cluster_of_our_own_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, serving_log: pytest.LogCaptureFixture
) -> None:
    cluster = Cluster(monkeypatch, most=9, grows=True)
    with pytest.raises(LucidError, match=r"up to 2 processors and up to 0 GPUs\. Lower --replica-cpus"):
        wait_for_room(Need(1, 4.0, 0.0), own=True)
    wait_for_room(Need(2, 1.0, 0.0), own=True)
    assert (cluster.looks, serving_log.messages) == (2, [])


def test_machines_may_join_a_cluster_for_some_time(
    monkeypatch: pytest.MonkeyPatch, serving_log: pytest.LogCaptureFixture
) -> None:
    cluster = Cluster(monkeypatch, most=9)
    wait_for_room(Need(3, 2.0, 0.0), own=False, patience=PATIENCE)
    assert cluster.looks == 3
    said = f"room for 1 of 3 engines; each reserves 2 processors. Waiting up to {PATIENCE:g} s for machines to join it."
    assert [message[-len(said) :] for message in serving_log.messages] == [said]
    Cluster(monkeypatch)
    with pytest.raises(LucidError, match=r"room for 1 of 3 engines.* Lower --replica-cpus"):
        wait_for_room(Need(3, 2.0, 0.0), own=False, patience=0.01)


def test_an_autoscaler_is_left_to_ray(monkeypatch: pytest.MonkeyPatch, serving_log: pytest.LogCaptureFixture) -> None:
    cluster = Cluster(monkeypatch, grows=True)
    wait_for_room(Need(3, 2.0, 0.0), own=False, patience=PATIENCE)
    assert cluster.looks == 1
    assert [message.partition(". ")[2] for message in serving_log.messages] == [
        "Waiting for its autoscaler to add machines."
    ]


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ({"active_nodes": {"node_ab": 1}, "node_type_mapping": {"ab": "node_ab"}}, False),  # as without an autoscaler
        (
            {"active_nodes": {"node_ab": 1}, "node_type_mapping": {"ab": "node_ab", "cd": "node_cd"}},
            False,
        ),  # cd not yet
        ({"active_nodes": {}, "node_type_mapping": {"ab": "node_ab"}}, False),
        ({"active_nodes": {"node_ab": 1}, "node_type_mapping": {"ab": "node_ab", "cd": "workers"}}, True),
        ({"active_nodes": {"ray.head.default": 1}, "node_type_mapping": {"ab": "ray.head.default"}}, True),
        ({"active_nodes": {"node_ab": 1, "workers": 2}, "node_type_mapping": {"ab": "node_ab"}}, True),
        ({}, True),
        (None, True),
    ],
)
def test_a_cluster_may_grow_unless_it_says_otherwise(report: dict[str, Any] | None, expected: bool) -> None:
    assert may_grow(json.dumps({"time": 1.0, "autoscaler_report": report}).encode()) is expected


def test_a_cluster_that_says_nothing_may_grow() -> None:
    assert may_grow(None)
    assert may_grow(b"{}")
