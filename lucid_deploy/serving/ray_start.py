"""From nothing to a running application on Ray Serve, or to the reason why it does not run."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from lucid_deploy.errors import CheckFailed, LucidError

log = logging.getLogger("lucid_deploy.serving")
OBJECT_STORE_BYTES = 100 << 20  # tokens and texts are small and do not go through it
# Seconds that Ray Serve waits for an HTTP proxy to start, before it kills it and starts another one: its own 5 are too
# few on a busy machine, where no proxy then ever starts. `serve.start` gives up after 60.
PROXY_PATIENCE = ("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
LISTENING_SECONDS = 30.0  # in which the cluster must take a connection
POLL_SECONDS = 0.1
_ROUNDING = 1e-6  # of sums of tenths of processors
# Ray's own remarks are one step less welcome than ours: its warnings come with our information, nothing with --quiet.
_RAYS_LEVEL = {"debug": logging.INFO, "info": logging.WARNING}
# How the text of a traceback ends that one of ours raised in another process.
_OURS = re.compile(r"^lucid_deploy\.errors\.(\w+): (.+)$", re.MULTILINE)


def connect(address: str | None, log_level: str) -> None:
    """Join the Ray cluster at an address that ``ray.init`` takes, or start one on this machine if it is None."""
    level = _RAYS_LEVEL.get(log_level, logging.ERROR)
    logging.getLogger("ray.serve").setLevel(level)
    here: dict[str, Any] = {"address": address}
    if address is None:
        here = {
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
        }
        os.environ.setdefault(*PROXY_PATIENCE)  # for the cluster's processes, which get this one's environment
    else:
        check_listening(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**here, log_to_driver=False, logging_level=level, configure_logging=True)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise LucidError(f"No Ray cluster at {address or 'this machine'}: {error}") from error
    except SystemExit as error:  # Ray has put a handler in place that ends with the signal's number
        raise SystemExit(128 + signal.SIGTERM if error.code == signal.SIGTERM else error.code) from error
    except Exception as error:
        if "timed out during startup" not in str(error):  # which Ray has no class for
            raise
        raise LucidError(
            f"Ray did not start within the time that it gives itself: {error} Try again when this machine is less busy."
        ) from error
    finally:
        signal.signal(signal.SIGTERM, handler)


def check_listening(address: str) -> None:
    """Check that a server listens at ``HOST:PORT``: Ray itself would try for minutes and ignore signals."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), LISTENING_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        remedy = "Check --ray-address; ray status on its head node shows whether it runs."
        raise LucidError(f"No Ray cluster at {address}: {reason}. {remedy}") from error


@dataclass(frozen=True)
class Need:
    """What the application reserves at its start; its front doors reserve nothing."""

    engines: int  # how many
    cpus: float  # processors of each
    gpus: float  # GPUs of each: a part of one, or whole ones


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


def check_room(need: Need, own: bool) -> None:
    """Check that the connected cluster can hold an application.

    A running cluster may get more machines, so for one that is not our own a warning is logged and Ray waits.
    """
    missing = lack(need, machines())
    if missing is not None and own:
        raise LucidError(f"{missing} Lower --replica-cpus, --replica-gpus or the number of engines.")
    if missing is not None:
        log.warning("%s Waiting for machines to join it.", missing)


def start_proxies(host: str, port: int, everywhere: bool) -> None:
    """Start Ray Serve and its HTTP proxies, on every machine of the cluster or on the head node alone."""
    location = ProxyLocation.EveryNode if everywhere else ProxyLocation.HeadOnly
    try:
        serve.start(proxy_location=location, http_options=HTTPOptions(host=host, port=port))
    except (TimeoutError, RayError) as error:
        reason = str(error).splitlines()[0]
        raise LucidError(
            f"Ray's HTTP proxy did not start: {reason} Try again when its machine is less busy."
        ) from error


def run_until_ready(application: serve.Application, name: str, patient: bool) -> None:
    """Deploy an application at ``/`` and wait until requests reach it.

    Raises the LucidError that a replica raised, unless ``patient``: then Ray may try again elsewhere.
    """
    try:
        serve.run_many([serve.RunTarget(application, name, "/")], wait_for_applications_running=False)
        wait_until_running(lambda: serve.status().applications.get(name), patient)
        client = _get_global_client()
        assert client is not None  # it raises where there is none
        client.wait_for_proxies_serving(wait_for_applications_running=True)
    except (TimeoutError, RayError, RayServeException) as error:
        reason = str(error).splitlines()[0]
        raise LucidError(f"The application did not start on Ray: {reason}") from error


def delete(name: str, grace: float) -> None:
    """Take an application off the cluster; its requests may take ``grace`` seconds to finish."""
    end = time.monotonic() + grace
    while True:
        try:
            serve.delete(name)
            return
        except TimeoutError:  # after 60 s of waiting, whatever the application was promised
            if time.monotonic() > end:
                log.warning("Ray Serve has not ended all replicas of %s; they are left to it.", name)
                return
        except (RayError, RayServeException) as error:
            log.warning("Ray Serve does not answer: %s", str(error).splitlines()[0])
            return


def wait_until_running(look: Callable[[], ApplicationStatusOverview | None], patient: bool) -> None:
    """Wait until an application runs, and log the messages of its deployments meanwhile."""
    logged: set[str] = set()
    while True:
        seen = look()
        if seen is not None:
            if seen.status == ApplicationStatus.RUNNING:
                return
            found = cause(seen)
            failed = seen.status == ApplicationStatus.DEPLOY_FAILED
            if found is not None and (failed or not patient):
                raise found
            if failed:
                raise LucidError(f"The application did not start on Ray: {last_words(seen)}")
            for name, deployment in seen.deployments.items():
                message = " ".join(deployment.message.partition("\n")[0].split())
                if message and message not in logged:
                    logged.add(message)
                    log.warning("%s: %s", name, message)
        time.sleep(POLL_SECONDS)


def cause(seen: ApplicationStatusOverview) -> LucidError | None:
    """Return the error of ours that kept a replica from starting; None if there is none."""
    for deployment in seen.deployments.values():
        found = _OURS.findall(deployment.message)
        if found:
            kind, text = found[-1]
            return (CheckFailed if kind == CheckFailed.__name__ else LucidError)(text)
    return None


def last_words(seen: ApplicationStatusOverview) -> str:
    """Return what Ray says of an application that did not start: its own line, and the end of each message."""
    lines = [seen.message.strip()]
    for name, deployment in seen.deployments.items():
        words = deployment.message.strip().splitlines()
        if words:
            lines.append(f"{name}: {words[-1].strip()}")
    return " ".join(line for line in lines if line)
