"""Whether the machines of a Ray cluster have room for the engines: Ray waits without end for what never comes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import ray
from ray.experimental.internal_kv import _internal_kv_get

from lucid_deploy.errors import LucidError

_STATUS = b"__autoscaling_status"  # where the head node's monitor writes what ``ray status`` shows
_ROUNDING = 1e-6  # of sums of tenths of processors


@dataclass(frozen=True)
class Need:
    """What the application reserves at its start.

    Attributes:
        engines: How many.
        cpus: Processors of each.
        gpus: GPUs of each.
        doors: Processors of all front doors.
    """

    engines: int
    cpus: float
    gpus: float
    doors: float


@dataclass(frozen=True)
class Machine:
    """What a machine of the cluster has in all, used now or not."""

    cpus: float
    gpus: float


def machines() -> list[Machine]:
    """Return the machines of the cluster that this process is connected with."""
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Machine(each.get("CPU", 0.0), each.get("GPU", 0.0)) for each in found]


def lack(need: Need, cluster: Sequence[Machine]) -> str | None:
    """Return what the machines lack, as a sentence; None if nothing is known to be lacking."""
    each = f"an engine that reserves {need.cpus:g} processors and {need.gpus:g} GPUs"
    rooms = [_room(need, machine) for machine in cluster]
    if not any(rooms):
        most = max((machine.cpus for machine in cluster), default=0), max((item.gpus for item in cluster), default=0)
        return (
            f"No machine of the Ray cluster can hold {each}: the largest has {most[0]:g} processors, {most[1]:g} GPUs."
        )
    if sum(rooms) < need.engines:
        return f"The Ray cluster can hold {sum(rooms):g} times {each}, not {need.engines} times."
    wanted, there = need.engines * need.cpus + need.doors, sum(machine.cpus for machine in cluster)
    if wanted > there + _ROUNDING:
        return (
            f"{need.engines} engines that reserve {need.cpus:g} processors each, and front doors that reserve "
            f"{need.doors:g}, do not fit into the {there:g} processors of the Ray cluster."
        )
    return None


def _room(need: Need, machine: Machine) -> float:
    parts = ((need.cpus, machine.cpus), (need.gpus, machine.gpus))
    return min((there + _ROUNDING) // wanted if wanted else math.inf for wanted, there in parts)


def check_room(need: Need, may_grow: bool) -> str | None:
    """Check that the connected cluster can hold an application.

    Args:
        need: What it reserves.
        may_grow: Whether machines may be added to the cluster.

    Returns:
        What is waited for, as a sentence; None if there is room.

    Raises:
        LucidError: There is no room, and no machine will be added.
    """
    missing = lack(need, machines())
    if missing is None:
        return None
    if may_grow:
        return f"{missing} Waiting for its autoscaler to add machines."
    raise LucidError(f"{missing} Lower --replica-cpus, --replica-gpus or the number of engines.")


def has_autoscaler() -> bool:
    """Whether the connected cluster may be given further machines, as far as it says."""
    return may_grow(_internal_kv_get(_STATUS))


def may_grow(status: bytes | None) -> bool:
    """Whether a cluster with this status may grow.

    Without an autoscaler the monitor reports machines under names that it makes of their ids; with one, under the names
    of its configuration. A cluster that reports in another way may grow.

    Args:
        status: What the head node's monitor wrote, JSON; None: nothing.
    """
    report = json.loads(status or b"{}").get("autoscaler_report")
    if not isinstance(report, dict) or not report.get("active_nodes"):
        return True
    return set(report["active_nodes"]) != {f"node_{key}" for key in report.get("node_type_mapping") or {}}
