"""Start an application on Ray Serve, on a running or a new cluster; if that fails, report why."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import time
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus

from lucid_deploy.errors import CheckFailed, LucidError

log = logging.getLogger("lucid_deploy.serving")
OBJECT_STORE_BYTES = 100 << 20  # tokens and texts are small and do not go through it
# Seconds that Ray Serve waits for an HTTP proxy to start before it kills it and starts another one. Its default, 5, is
# too short on a busy machine, where no proxy would ever start. `serve.start` gives up after 60.
PROXY_PATIENCE = ("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
LISTENING_SECONDS = 30.0  # time limit for connecting to the cluster
POLL_SECONDS = 0.1
_ROUNDING = 1e-6  # tolerance for products such as 3 · 0.1 processors, which is more than 0.3 in floating point
# Ray logs less than we do: warnings at our level info, and only errors above that.
_RAYS_LEVEL = {"debug": logging.INFO, "info": logging.WARNING}
# The last line of a traceback from another process that raised one of our errors.
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
        os.environ.setdefault(*PROXY_PATIENCE)  # for the cluster's processes, which inherit the environment
    else:
        check_listening(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**here, log_to_driver=False, logging_level=level, configure_logging=True)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise LucidError(f"No Ray cluster at {address or 'this machine'}: {error}") from error
    except SystemExit as error:  # Ray's SIGTERM handler exits with the signal's number, a shell with 128 more
        raise SystemExit(128 + signal.SIGTERM if error.code == signal.SIGTERM else error.code) from error
    except Exception as error:
        if "timed out during startup" not in str(error):  # Ray has no class for this error
            raise
        raise LucidError(
            f"Ray exceeded its own time limit for starting: {error} Try again when this machine is less busy."
        ) from error
    finally:
        signal.signal(signal.SIGTERM, handler)


def check_listening(address: str) -> None:
    """Raise a LucidError if nothing listens at ``HOST:PORT``: Ray would retry for minutes and ignore signals."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), LISTENING_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        remedy = "Check --ray-address; ray status on its head node shows whether it runs."
        raise LucidError(f"No Ray cluster at {address}: {reason}. {remedy}") from error


def check_room(engines: int, cpus: float, gpus: float, own: bool) -> None:
    """Check that the connected cluster has the CPUs and GPUs that the engines reserve.

    Raises a LucidError if our own cluster lacks some; on others, which machines may still join, only logs a warning.
    """
    there = ray.cluster_resources()
    lacking = [
        f"{engines * needed:g} {kind}s, of which it has {there.get(kind, 0):g}"
        for kind, needed in (("CPU", cpus), ("GPU", gpus))
        if engines * needed > there.get(kind, 0) + _ROUNDING
    ]
    if not lacking:
        return
    message = f"The Ray cluster lacks room: {engines} engines reserve {', and '.join(lacking)}."
    if own:
        raise LucidError(f"{message} Lower --replica-cpus, --replica-gpus or the number of engines.")
    log.warning("%s Waiting for machines to join it.", message)


def deploy(application: serve.Application, name: str, options: HTTPOptions, own: bool) -> None:
    """Start Ray Serve's HTTP proxies and an application at ``/``, and wait until requests reach it.

    Raises a replica's LucidError, or one with Ray's reason; on a cluster that is not our own, Ray may retry first.
    """
    try:
        location = ProxyLocation.HeadOnly if own else ProxyLocation.EveryNode
        serve.start(proxy_location=location, http_options=options)
        serve.run_many([serve.RunTarget(application, name, "/")], wait_for_applications_running=False)
        _wait_until_running(name, own)
        client = _get_global_client()
        assert client is not None  # it raises an error if there is none
        client.wait_for_proxies_serving(wait_for_applications_running=True)
    except (TimeoutError, RayError, RayServeException) as error:
        reason = str(error).splitlines()[0]
        raise LucidError(
            f"The application did not start on Ray: {reason} Try again when its machines are less busy."
        ) from error


def _wait_until_running(name: str, own: bool) -> None:
    """Wait until an application runs, logging its deployments' messages; raise a LucidError if it fails."""
    logged: set[str] = set()
    while (seen := serve.status().applications.get(name)) is None or seen.status != ApplicationStatus.RUNNING:
        deployments = {} if seen is None else seen.deployments
        ours = [found for each in deployments.values() for found in _OURS.findall(each.message)]
        status, message = (None, "") if seen is None else (seen.status, seen.message.strip())
        failed = status == ApplicationStatus.DEPLOY_FAILED
        if ours and (failed or own):
            kind, reason = ours[-1]
            raise (CheckFailed if kind == CheckFailed.__name__ else LucidError)(reason)
        texts = {each: found.message.strip() for each, found in deployments.items() if found.message.strip()}
        if failed:
            last = [f"{each}: {text.splitlines()[-1].strip()}" for each, text in texts.items()]
            raise LucidError(f"The application did not start on Ray: {' '.join([message, *last])}")
        for each, text in texts.items():
            first = " ".join(text.partition("\n")[0].split())
            if first not in logged:
                logged.add(first)
                log.warning("%s: %s", each, first)
        time.sleep(POLL_SECONDS)


def delete(name: str, grace: float) -> None:
    """Remove an application from the cluster; its requests get ``grace`` seconds to finish."""
    end = time.monotonic() + grace
    while True:
        try:
            serve.delete(name)
            return
        except TimeoutError:  # Ray gives up after 60 s, even if the application's grace period is longer
            if time.monotonic() > end:
                log.warning("Ray Serve has not ended all replicas of %s; Ray will end them later.", name)
                return
        except (RayError, RayServeException) as error:
            log.warning("Ray Serve does not answer: %s", str(error).splitlines()[0])
            return
