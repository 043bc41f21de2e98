"""Whether the machines of a Ray cluster have room for the engines: Ray waits without end for what never comes."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import ray
from ray.experimental.internal_kv import _internal_kv_get

from lucid_deploy.errors import LucidError

log = logging.getLogger("lucid_deploy.serving")
JOINING_SECONDS = 60.0  # that machines may take to join a cluster without an autoscaler
POLL_SECONDS = 0.5
_STATUS = b"__autoscaling_status"  # where the head node's monitor writes what ``ray status`` shows
_ROUNDING = 1e-6  # of sums of tenths of processors


@dataclass(frozen=True)
class Need:
    """What the application reserves at its start; its front doors reserve nothing."""

    engines: int  # how many
    cpus: float  # processors of each
    gpus: float  # gPUs of each: a part of one, or whole ones


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
    each = _amount(need.cpus, "processor") + (f" and {_amount(need.gpus, 'GPU')}" if need.gpus else "")
    rooms = [_room(need, machine) for machine in cluster]
    if not any(rooms):
        cpus = _amount(max((machine.cpus for machine in cluster), default=0), "processor")
        gpus = _amount(max((machine.gpus for machine in cluster), default=0), "GPU")
        return (
            f"No machine of the Ray cluster has room for an engine, which reserves {each}: they have up to {cpus} and "
            f"up to {gpus}."
        )
    if sum(rooms) < need.engines:
        return f"The Ray cluster has room for {sum(rooms):g} of {need.engines} engines; each reserves {each}."
    return None


def _amount(number: float, what: str) -> str:
    return f"{number:g} {what}" if number == 1 else f"{number:g} {what}s"


def _room(need: Need, machine: Machine) -> float:
    """Return how many engines a machine can hold. Ray takes a part of a GPU from one GPU, never from several."""
    by_cpus = _times(need.cpus, machine.cpus)
    if 0 < need.gpus < 1:
        return min(by_cpus, machine.gpus // 1 * _times(need.gpus, 1.0))
    return min(by_cpus, _times(need.gpus, machine.gpus))


def _times(wanted: float, there: float) -> float:
    return (there + _ROUNDING) // wanted if wanted else math.inf


def wait_for_room(need: Need, own: bool, patience: float = JOINING_SECONDS) -> None:
    """Check that the connected cluster can hold an application; machines may still join one that is not our own.

    A cluster with an autoscaler is not waited for: Ray asks it for machines once the application is deployed.

    Args:
        own: Whether the cluster is this machine, started by this process.
        patience: Seconds that machines may take to join another one.

    Raises:
        LucidError: There is no room.
    """
    end, told = time.monotonic() + patience, False
    while (missing := lack(need, machines())) is not None:
        if not own and has_autoscaler():
            log.warning("%s Waiting for its autoscaler to add machines.", missing)
            return
        if own or time.monotonic() >= end:
            raise LucidError(f"{missing} Lower --replica-cpus, --replica-gpus or the number of engines.")
        if not told:
            log.warning("%s Waiting up to %g s for machines to join it.", missing, patience)
            told = True
        time.sleep(POLL_SECONDS)


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
    if not isinstance(report, dict):
        return True
    kinds = report.get("node_type_mapping") or {}  # of machines that are not active, too
    names = {*(report.get("active_nodes") or {}), *kinds.values()}
    return not names or not names <= {f"node_{key}" for key in kinds}
