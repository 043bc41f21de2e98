"""Starting the application on Ray Serve: until it runs, or until Ray says why it does not."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable

from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from lucid_deploy.errors import CheckFailed, LucidError

log = logging.getLogger("lucid_deploy.serving")
POLL_SECONDS = 0.1
# How the text of a traceback ends that one of ours raised in another process.
_OURS = re.compile(r"^lucid_deploy\.errors\.(\w+): (.+)$", re.MULTILINE)


def start_proxies(host: str, port: int, everywhere: bool) -> None:
    """Start Ray Serve and its HTTP proxies.

    Args:
        everywhere: Whether every machine of the cluster has one, or the head node alone.

    Raises:
        LucidError: They do not start.
    """
    location = ProxyLocation.EveryNode if everywhere else ProxyLocation.HeadOnly
    try:
        serve.start(proxy_location=location, http_options=HTTPOptions(host=host, port=port))
    except (TimeoutError, RayError) as error:
        reason = str(error).splitlines()[0]
        raise LucidError(
            f"Ray's HTTP proxy did not start: {reason} Try again when its machine is less busy."
        ) from error


def run_until_ready(application: serve.Application, name: str, patient: bool) -> None:
    """Deploy an application at ``/`` and wait until requests reach it. Signals' handlers may end the wait.

    Args:
        patient: Whether Ray may try again elsewhere after a replica has raised one of our errors.

    Raises:
        LucidError: It does not start, or Ray ends; what a replica raised, if that is one of ours.
        CheckFailed: As a replica raised it.
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
    """Take an application off the cluster, and wait until its requests are done.

    Args:
        grace: Seconds that they may take; Ray Serve ends them then.
    """
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
    """Wait until an application runs, and log what its deployments say meanwhile; see :func:`run_until_ready`."""
    told: set[str] = set()
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
                said = " ".join(deployment.message.partition("\n")[0].split())
                if said and said not in told:
                    told.add(said)
                    log.warning("%s: %s", name, said)
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
