"""The HTTP application on Ray Serve: API replicas, and the engine replicas they call, each with its own batcher."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from lucid_deploy.artifact import open_artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.text_stream import TextPiece
from lucid_deploy.runtimes.open import check_fits
from lucid_deploy.runtimes.registry import find_runtime
from lucid_deploy.serving.app import App
from lucid_deploy.serving.engine import EngineOptions
from lucid_deploy.serving.errors import ApiError, queue_full
from lucid_deploy.serving.front import ApiOptions, Service, reader_setup
from lucid_deploy.serving.jobs import Job, make_backend
from lucid_deploy.serving.ray_start import check_room, connect, delete, deploy
from lucid_deploy.serving.readers import reader_process
from lucid_deploy.serving.server import bind, handle_ends, set_up_logging

log = logging.getLogger("lucid_deploy.serving")
APPLICATION = "lucid-deploy"
ENGINE = "Engine"
API_REQUESTS = 1000  # requests that an API replica handles at once; the engines decide which are admitted
PROBE_SECONDS = 2.0  # timeout of a probe, and interval between probes while ready
PROBE_PATIENCE = 3  # successive probes without an answer until the application counts as not ready


@dataclass(frozen=True)
class ClusterOptions:
    """Where the HTTP proxies of a Ray cluster listen, how many engines run, and what each reserves."""

    host: str  # address that the HTTP proxies listen on
    port: int  # port of the HTTP proxies
    address: str | None  # of a running cluster; None: start one on this machine, and stop it with the server
    low: int  # fewest engines
    high: int  # most engines; Ray scales between ``low`` and ``high`` by load
    cpus: float  # CPUs that an engine reserves
    gpus: float  # GPUs that an engine reserves
    threads: int | None  # threads of an engine without --threads; None lets its runtime choose
    grace: float  # seconds that running requests get to finish at shutdown
    log_level: str  # lowest level that is logged


def serve_on_ray(engine: EngineOptions, api: ApiOptions, cluster: ClusterOptions, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP; call ``ready`` when serving. All machines need the artifacts' files."""
    own = cluster.address is None
    if own:
        if cluster.port == 0:
            raise LucidError("--engine ray needs a fixed port: set --port to one above 0.")
        bind(cluster.host, cluster.port).close()  # Ray would only log that the port is in use
    for directory in filter(None, (engine.directory, engine.draft)):
        check_fits(open_artifact(directory), engine.runtime, own)
    with reader_process(reader_setup(engine, api)) as reader:
        reader.start()
    served, deployed = threading.Event(), False
    previous: dict[int, Any] = {}
    try:  # before all engines have loaded, a signal interrupts this as usual
        connect(cluster.address, cluster.log_level)
        check_room(max(cluster.low, 1), cluster.cpus, cluster.gpus, own)
        deployed = True
        deploy(application(engine, api, cluster), APPLICATION, HTTPOptions(host=cluster.host, port=cluster.port), own)
        previous = handle_ends(lambda *_: served.set())
        ready()
        served.wait()
        log.warning("Shutting down: running requests may take %g s to finish.", cluster.grace)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)  # so that a second signal ends the wait for running requests
        try:
            if deployed and (previous or not own):
                delete(APPLICATION, cluster.grace)
        finally:
            # This ends a cluster of our own with all of Ray Serve. serve.shutdown() would make Serve's controller kill
            # itself during the call, which Ray reports as an error on stdout.
            ray.shutdown()


def application(engine: EngineOptions, api: ApiOptions, cluster: ClusterOptions) -> serve.Application:
    """Return the Ray Serve application: API replicas bound to engine replicas."""
    engine = on_any_machine(engine, cluster.threads)
    name = api.model or Path(engine.directory).name
    api = replace(api, model=name)

    def build() -> Any:
        set_up_logging(cluster.log_level)
        handle = serve.get_deployment_handle(ENGINE, app_name=APPLICATION)
        service = Service(api, reader_setup(engine, api), RayBackend(handle, to_zero=cluster.low == 0))
        service.readers.start()
        return App(service)

    scaling: dict[str, Any] = {"num_replicas": cluster.low}
    if cluster.low != cluster.high:
        scaling = {
            "autoscaling_config": {
                "min_replicas": cluster.low,
                "max_replicas": cluster.high,
                "target_ongoing_requests": engine.rows,
            }
        }
    engines: Any = serve.deployment(
        EngineReplica,
        name=ENGINE,
        # Above what an engine admits: it refuses further requests itself, so that clients get a 429.
        max_ongoing_requests=2 * (engine.rows + engine.max_queue) + 16,
        graceful_shutdown_timeout_s=cluster.grace,
        health_check_period_s=2.0,
        ray_actor_options={"num_cpus": cluster.cpus, "num_gpus": cluster.gpus},
        **scaling,
    )
    apis: Any = serve.deployment(
        serve.ingress(build)(),
        name="Api",
        num_replicas=1 if cluster.high == 1 else 2,
        max_ongoing_requests=API_REQUESTS,
        graceful_shutdown_timeout_s=cluster.grace,
        ray_actor_options={"num_cpus": 0},  # API replicas need little, and engines may reserve every processor
    )
    return apis.bind(engines.bind(engine, cluster.log_level))


def on_any_machine(engine: EngineOptions, threads: int | None) -> EngineOptions:
    """Return the options with absolute paths, and with ``threads`` if the user set none and the runtime takes it."""
    runtime = engine.runtime
    if runtime.threads is None and "threads" in find_runtime(runtime.runtime).options:
        runtime = replace(runtime, threads=threads)
    directory = str(Path(engine.directory).resolve())
    draft = None if engine.draft is None else str(Path(engine.draft).resolve())
    return replace(engine, directory=directory, draft=draft, runtime=runtime)


class EngineReplica:
    """A replica of Ray Serve: an engine in a process of its own."""

    def __init__(self, options: EngineOptions, log_level: str) -> None:
        set_up_logging(log_level)
        self._backend = make_backend(options)
        loaded = threading.Event()
        self._backend.engine.start(loaded.set)
        loaded.wait()
        error = self._backend.engine.error
        if isinstance(error, LucidError):  # Ray passes on its text, which the command line prints
            raise error
        self.check_health()

    async def generate(self, job: Job) -> AsyncGenerator[list[TextPiece] | ApiError, None]:
        """Run a job, and yield an ApiError if it fails; Ray closes the generator when the client disconnects."""
        try:
            async for events in self._backend.generate(job):
                yield events
        except ApiError as error:  # yielded, because RayBackend takes an exception to mean that the engine ended
            yield error

    async def gauges(self) -> dict[str, float]:
        return self._backend.gauges()

    def check_health(self) -> None:
        """Raise a RuntimeError if the engine has ended or is stuck in a step; Ray then replaces this replica."""
        error, state = self._backend.engine.error, self._backend.state
        if state != "ready":
            raise RuntimeError(f"The engine is not running: {error or state}") from error


class RayBackend:
    """Runs an API replica's requests on the engines.

    If an engine ends before a request has output, the request is retried once; otherwise its client gets an error.
    With ``to_zero`` there may be no engine: a request waits until one starts. Probes would start one, so none are sent.
    """

    def __init__(self, handle: DeploymentHandle, to_zero: bool = False) -> None:
        self._handle = handle
        self._streaming = handle.options(stream=True)
        self._state = "ready" if to_zero else "loading"
        self._probe = None if to_zero else asyncio.ensure_future(self._probe_forever())

    @property
    def state(self) -> str:
        return self._state

    def gauges(self) -> dict[str, float]:
        return {}

    async def generate(self, job: Job) -> AsyncGenerator[list[TextPiece], None]:
        for last in (False, True):
            response: Any = self._streaming.generate.remote(job)
            begun = False
            try:
                async for events in response:
                    if isinstance(events, ApiError):
                        raise events
                    begun = True
                    yield events
                return
            except BackPressureError as error:
                raise queue_full() from error
            except (RayError, RayServeException) as error:
                log.warning("An engine ended while it ran a request: %s", str(error).splitlines()[0])
                if begun or last:
                    message = "The engine that ran this request ended. Send it again."
                    raise ApiError(500, message, "engine_error") from error
            finally:
                response.cancel()

    async def _probe_forever(self) -> None:
        failures = 0
        while True:
            try:
                async with asyncio.timeout(PROBE_SECONDS):
                    await self._handle.gauges.remote()
                failures, self._state = 0, "ready"
            except (RayError, RayServeException, TimeoutError) as error:
                failures += 1
                if failures >= PROBE_PATIENCE and self._state == "ready":
                    log.warning("No engine answers: %s", error)
                    self._state = "dead"
            await asyncio.sleep(PROBE_SECONDS if self._state == "ready" else 0.2)
