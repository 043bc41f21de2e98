"""What no machine can hold is refused, what only a larger cluster can hold waits for it."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("ray", reason="the extra ray")

from lucid_deploy.errors import LucidError
from lucid_deploy.serving.ray_capacity import Machine, Need, check_room, lack, may_grow

SMALL, LARGE = Machine(2.0, 0.0), Machine(8.0, 4.0)


@pytest.mark.parametrize(
    ("need", "cluster", "said"),
    [
        (Need(1, 100.0, 0.0, 0.1), [SMALL, LARGE], "No machine .* the largest has 8 processors, 4 GPUs"),
        (Need(1, 1.0, 1.0, 0.1), [SMALL], "reserves 1 processors and 1 GPUs: the largest has 2 processors, 0 GPUs"),
        (Need(1, 3.0, 1.0, 0.1), [SMALL, Machine(1.0, 8.0)], "No machine"),  # processors here, GPUs there
        (Need(1, 1.0, 0.0, 0.1), [], "No machine"),
        (Need(4, 1.0, 0.0, 0.0), [SMALL], "can hold 2 times an engine .*, not 4 times"),
        (Need(4, 1.5, 0.0, 0.0), [SMALL] * 3, "can hold 3 times"),  # 6 processors, of which half a one is left on each
        (Need(2, 1.0, 0.0, 0.2), [SMALL], "front doors that reserve 0.2, do not fit into the 2 processors"),
        (Need(2, 0.9, 0.0, 0.2), [SMALL], None),
        (Need(20, 0.1, 0.0, 0.0), [SMALL], None),
        (Need(9, 0.0, 0.0, 0.2), [SMALL], None),
        (Need(8, 0.5, 0.5, 0.2), [SMALL, LARGE], None),
        (Need(9, 0.5, 0.5, 0.2), [SMALL, LARGE], "can hold 8 times"),
    ],
)
def test_what_is_lacking(need: Need, cluster: list[Machine], said: str | None) -> None:
    found = lack(need, cluster)
    if said is None:
        assert found is None
    else:
        with pytest.raises(LucidError, match=said):
            raise LucidError(found)


def test_machines_that_are_gone_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 1.0}}]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    need = Need(1, 4.0, 0.0, 0.1)
    with pytest.raises(LucidError, match=r"the largest has 2 processors, 0 GPUs\. Lower --replica-cpus"):
        check_room(need, may_grow=False)
    assert (check_room(need, may_grow=True) or "").endswith("Waiting for its autoscaler to add machines.")
    assert check_room(Need(1, 1.0, 0.0, 0.1), may_grow=False) is None


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ({"active_nodes": {"node_ab": 1}, "node_type_mapping": {"ab": "node_ab"}}, False),  # as without an autoscaler
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
