"""The state of the application, which everything that answers requests shares."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from lucid_deploy.serving.errors import no_such_model, queue_full, unavailable
from lucid_deploy.serving.jobs import Backend
from lucid_deploy.serving.limits import BODIES, BodyMemory, Limits
from lucid_deploy.serving.metrics import Metrics
from lucid_deploy.serving.readers import ReaderPool
from lucid_deploy.serving.security import NO_KEYS, ApiKeys
from lucid_deploy.serving.tracing import Tracing


@dataclass
class Settings:
    """What an application serves, and to whom."""

    model: str  # name that requests must give
    fingerprint: str  # names the artifact
    limits: Limits  # what a request may ask for
    keys: ApiKeys  # who may ask
    hosts: frozenset[str] | None  # names besides this machine's under which a server without keys answers; None: any
    created: int = 0  # when the artifact was made, seconds since 1970
    metrics_keys: ApiKeys = NO_KEYS  # who may read exact metrics; if empty, everyone who may ask reads rounded ones
    share_prefixes: bool = False  # whether stored prefixes are reused among different keys
    pages: bool = True  # whether the pages for browsers are served, and what only they use


class Service:
    """The application's state. Make it in an event loop.

    Attributes:
        draining: Whether new requests are refused because the server will end.
        ending: Set when grace is over: running requests end with an error.

    Args:
        tracing: Makes spans; None: there are none.
    """

    def __init__(
        self, settings: Settings, backend: Backend, readers: ReaderPool, tracing: Tracing | None = None
    ) -> None:
        self.settings = settings
        self.backend = backend
        self.readers = readers
        self.tracing = tracing
        self.metrics = Metrics(backend.gauges)
        self.body_memory = BodyMemory(BODIES * settings.limits.body_bytes)
        self.draining = False
        self.ending = asyncio.Event()
        self.busy = 0
        self.most_busy = 1000

    def begin(self) -> None:
        """Count a request that has arrived whole; call :meth:`end` once it is answered."""
        if self.busy >= self.most_busy:
            raise queue_full(1)
        self.busy += 1

    def end(self) -> None:
        """Count a request less."""
        self.busy -= 1

    def check_ready(self) -> None:
        """Refuse requests while loading, stopping or broken."""
        if self.draining:
            raise unavailable("The server is shutting down.", "shutting_down")
        if self.backend.state == "loading":
            raise unavailable("The model is still loading.", "loading")
        if self.backend.state == "stuck":
            raise unavailable("A step of the model takes longer than --timeout.", "engine_stuck")
        if self.backend.state != "ready":
            raise unavailable("The engine ended by an error; see the server's log.", "engine_down")

    def check_model(self, name: str) -> None:
        """Refuse other models' names."""
        if name != self.settings.model:
            raise no_such_model(name, self.settings.model)

    def model_json(self) -> dict[str, Any]:
        """Return the model as ``/v1/models`` lists it."""
        return {
            "id": self.settings.model,
            "object": "model",
            "created": self.settings.created,
            "owned_by": "lucid-deploy",
            "max_model_len": self.settings.limits.context,
            "has_chat_template": self.readers.has_chat_template,
        }
