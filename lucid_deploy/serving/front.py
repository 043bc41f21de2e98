"""What every request needs: checks of key and host, receiving the body, cancellation, the log and metrics."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from lucid_deploy.errors import LucidError
from lucid_deploy.json_fields import shown
from lucid_deploy.serving.engine import EngineOptions, open_checked
from lucid_deploy.serving.errors import ApiError, queue_full, unavailable
from lucid_deploy.serving.fields import Kind
from lucid_deploy.serving.jobs import LocalBackend
from lucid_deploy.serving.metrics import Metrics
from lucid_deploy.serving.readers import ReaderPool
from lucid_deploy.serving.requests import ReaderSetup
from lucid_deploy.serving.security import ApiKeys, host_allowed

if TYPE_CHECKING:
    from lucid_deploy.serving.answers import Answer
    from lucid_deploy.serving.ray_cluster import RayBackend

log = logging.getLogger("lucid_deploy.serving")
T = TypeVar("T")
HEALTH = ("/healthz", "/health")
METRICS = "/metrics"
PAGES = {  # for browsers: path → file in web/ and its type
    "/": ("index.html", "text/html"),
    "/ui/app.js": ("app.js", "text/javascript"),
    "/ui/icon.svg": ("icon.svg", "image/svg+xml"),
    "/docs": ("docs.html", "text/html"),
    "/ui/style.css": ("style.css", "text/css"),
}
LAST_WORD_SECONDS = 1.0  # to send the error that ends a stream; a client that reads too slowly does not get it
FREE_BYTES = 64 << 10  # bytes of each body that do not count in Service.body_memory, so that small requests always fit
BODIES = 16  # bodies of the largest size that may be in memory at once
STATES = {  # states in which requests are refused, with the error's message and code
    "draining": ("The server is shutting down.", "shutting_down"),
    "loading": ("The model is still loading.", "loading"),
    "stuck": ("A step of the model takes longer than --timeout.", "engine_stuck"),
    "dead": ("The engine ended or does not answer; see the server's log.", "engine_down"),
}


@dataclass(frozen=True)
class ApiOptions:
    """Options of the HTTP API: its limits, who may send requests, and how they are served."""

    model: str | None = None  # the served name; None: the directory's name
    max_prompt_tokens: int | None = None  # most tokens of one prompt; None: the context
    max_new_tokens: int | None = None  # most new tokens of one generation; None: the context
    max_choices: int | None = None  # most generations of one request; None: max(1, EngineOptions.rows - 1)
    max_body_bytes: int = 4 << 20  # largest body of a request
    seconds: float = 300.0  # time limit from the end of a request's headers to the end of its answer
    readers: int = 2  # processes that parse bodies, render chat templates and tokenize
    keys: ApiKeys = field(default_factory=ApiKeys)  # who may send requests
    hosts: frozenset[str] | None = None  # names that a Host header may have, besides loopback ones; None: any
    metrics_keys: ApiKeys = field(default_factory=ApiKeys)  # who may read metrics; if empty, ``keys`` may
    share_prefixes: bool = False  # whether clients with different keys share stored prefixes
    pages: bool = True  # whether the files for browsers in PAGES are served


def reader_setup(engine: EngineOptions, api: ApiOptions) -> ReaderSetup:
    """Return the setup of reader processes; LucidError if the artifact has no tokenizer or the name is an adapter's."""
    artifact = open_checked(engine.directory)
    context = artifact.config.max_position_embeddings
    directory = artifact.directory.resolve()
    model, adapters = api.model or directory.name, tuple(each.name for each in artifact.adapters())
    if model in adapters:
        raise LucidError(f"An adapter is also named {model}: choose another --served-model-name for the model.")
    return ReaderSetup(
        str(directory),
        (model, *adapters),
        context,
        artifact.config.vocab_size,
        prompt_tokens=api.max_prompt_tokens or context,
        new_tokens=api.max_new_tokens or context,
        choices=api.max_choices or max(1, engine.rows - 1),
        body_bytes=api.max_body_bytes,
    )


class Service:
    """The state that all requests share. Create it in a running event loop."""

    def __init__(self, api: ApiOptions, setup: ReaderSetup, backend: LocalBackend | RayBackend) -> None:
        self.api, self.setup, self.backend = api, setup, backend
        self.created = int(time.time())
        self.readers = ReaderPool(setup, api.readers)
        self.metrics = Metrics(backend.gauges)
        self.body_memory = 0  # bytes of bodies that are received or being read, less FREE_BYTES for each
        self.most_body_memory = BODIES * setup.body_bytes
        self.busy: Counter[str] = Counter()  # number of requests being read or answered, by key
        self.most_busy = 1000  # most requests that may be read or answered at once
        self.draining = False  # whether new requests are refused because the server will end
        # Done when the server stops waiting for requests; those that still run then end with an error.
        self.ending: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def check_ready(self) -> None:
        """Raise an ApiError while the server is loading, stopping or broken."""
        state = "draining" if self.draining else self.backend.state
        if state != "ready":
            raise unavailable(*STATES[state])


class Exchange:
    """One request and its answer."""

    def __init__(self, service: Service, scope: Scope, receive: Receive, send: Send) -> None:
        self.service, self.scope, self.receive, self._send = service, scope, receive, send
        self._request = Request(scope, receive)
        self.headers = self._request.headers
        self.route = "other"  # label in metrics: the path, or ``other`` if it is unknown or ``check`` refused
        self.id = "req_" + secrets.token_hex(12)  # written to the log and to a header of the answer
        self.key = ""  # hex digest of the client's API key; empty if there is none
        self.status = 499  # HTTP status, 499 before the answer begins
        self.started = time.perf_counter()
        self._counted = 0  # bytes of the body that count in Service.body_memory
        self._busy = False
        # Only set for requests that generate:
        self.kind: Kind | None = None  # of its body
        self.answer: Answer | None = None  # once the body has been read
        self.first_token: float | None = None  # seconds from ``started`` to the first token

    def check(self) -> None:
        """Identify the client; raise an ApiError for an ambiguous request, another host's name or an unknown key."""
        api, path = self.service.api, self.scope["path"]
        coding = self.headers.get("transfer-encoding", "chunked").strip().lower()
        if coding != "chunked" or len(self.headers.getlist("host")) > 1:  # a proxy in front may read these differently
            close = {"Connection": "close"}
            raise ApiError(400, "Send one Host header, and no Transfer-Encoding but chunked.", headers=close)
        if api.hosts is not None and not host_allowed(self.headers.get("host"), api.hosts):
            raise ApiError(403, "The Host header has an unknown name; allow it with --allow-host.", "host_not_allowed")
        keys = api.metrics_keys if path == METRICS and api.metrics_keys else api.keys
        key = keys.identify(self.headers.get("authorization"))
        open_paths = (*HEALTH, *PAGES) if api.pages else HEALTH  # the pages contain nothing about the model
        if path not in open_paths and key is None:
            message = "The API key is missing or wrong; send it as Authorization: Bearer KEY."
            raise ApiError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        self.key = key or ""

    async def body(self) -> bytes:
        """Receive the body and count the request in ``Service.busy``; raise an ApiError if it is refused."""
        service = self.service
        service.check_ready()
        kind = self.headers.get("content-type", "").lower().partition(";")[0].strip()
        if kind != "application/json":  # a web page cannot send this type to another site without a CORS preflight
            raise ApiError(415, "Send the body as Content-Type: application/json.", "unsupported_media_type")
        most, body = service.setup.body_bytes, bytearray()
        async for part in self._request.stream():
            body += part
            if len(body) > most:
                raise ApiError(413, f"The body is larger than {most} bytes.", "body_too_large")
            self.count(len(body))
        busy, most = service.busy, service.most_busy
        # If there are several keys, each may have at most half of ``most_busy`` requests.
        if busy.total() >= most or (len(service.api.keys) > 1 and busy[self.key] >= most // 2):
            raise queue_full(1)
        busy[self.key] += 1
        self._busy = True
        return bytes(body)

    def count(self, size: int) -> None:
        """Count the body as ``size`` bytes from now on; raise an ApiError if all bodies together exceed the limit."""
        service, more = self.service, max(0, size - FREE_BYTES) - self._counted
        if more > 0 and service.body_memory + more > service.most_body_memory:
            raise unavailable("Too many large requests are being read at once. Try again later.", "too_many_bodies")
        self._counted += more
        service.body_memory += more

    async def during(self, work: Coroutine[Any, Any, T]) -> T:
        """Await ``work``; cancel it and raise if the client disconnects, the time limit passes or the server ends."""
        seconds, ending = self.service.api.seconds, self.service.ending
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(self._until_gone())
        try:
            left = max(0.0, seconds - (time.perf_counter() - self.started))
            watched: list[asyncio.Future[Any]] = [task, gone, ending]
            await asyncio.wait(watched, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if gone.done():
                raise ClientDisconnect
            if ending.done():
                raise unavailable(*STATES["draining"])
            raise ApiError(504, f"The request took longer than {seconds:g} s, the server's limit.", "timeout")
        finally:
            task.cancel()
            gone.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    async def _until_gone(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], (b"x-request-id", self.id.encode())]
            # After an error, a client that sent Expect may send the body or its next request: we cannot tell which.
            if self.service.draining or (self.status >= 400 and "expect" in self.headers):
                message["headers"].append((b"connection", b"close"))
        await self._send(message)

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error; if a stream has begun, end it with the error."""
        self.service.metrics.rejected.labels(error.code).inc()
        if self.status == 499:
            await JSONResponse(error.body(), error.status, error.headers)(self.scope, self.receive, self.send)
        elif self.answer is not None and self.answer.job.stream:
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORD_SECONDS):
                    last = self.answer.frames([self.answer.failure(error)])
                    await self._send({"type": "http.response.body", "body": last, "more_body": True})
                    await self._send({"type": "http.response.body"})
        self.status = error.status

    def end(self) -> None:
        """Stop counting a finished request, log it and record it in the metrics."""
        self.count(0)
        if self._busy:
            self.service.busy[self.key] -= 1
        scope, seconds, metrics = self.scope, time.perf_counter() - self.started, self.service.metrics
        metrics.requests.labels(self.route, str(self.status)).inc()
        if scope["method"] == "POST" and self.status == 200:
            metrics.whole.observe(seconds)
        client = (scope.get("client") or ("-",))[0]
        ids = self.id if self.answer is None else f"{self.id} {self.answer.id}"
        # Health checks arrive every few seconds: log only failed ones, unless debugging.
        level = logging.DEBUG if scope["path"] in HEALTH and self.status == 200 else logging.INFO
        line = "%s %s %s %d %.0f ms %s"
        log.log(level, line, client, scope["method"], shown(scope["path"]), self.status, 1e3 * seconds, ids)
