"""The application's state, and what stands around every request: key and host, the body's arrival, the log, metrics."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from lucid_deploy.json_fields import shown
from lucid_deploy.serving.engine import Backend
from lucid_deploy.serving.errors import ApiError, ClientGone, queue_full, unavailable
from lucid_deploy.serving.metrics import Metrics
from lucid_deploy.serving.pages import PAGES
from lucid_deploy.serving.readers import ReaderPool
from lucid_deploy.serving.requests import Limits
from lucid_deploy.serving.security import NO_KEYS, ApiKeys, host_allowed
from lucid_deploy.serving.tracing import Tracing

log = logging.getLogger("lucid_deploy.serving")
HEALTH = ("/healthz", "/health")
METRICS = "/metrics"
DRAIN_SECONDS, DRAIN_BYTES = 2.0, 16 << 20  # of a body that is not needed
BODY_SECONDS = 30.0  # for a body to arrive
FREE_BYTES = 64 << 10  # of each body that do not count: small requests get in whatever large ones take
BODIES = 16  # as many of the largest bodies may be in memory at once
STATES = {
    "loading": ("The model is still loading.", "loading"),
    "stuck": ("A step of the model takes longer than --timeout.", "engine_stuck"),
}


@dataclass
class Settings:
    """What an application serves, and to whom."""

    model: str  # name that requests must give
    fingerprint: str  # names the artifact
    limits: Limits  # what a request may ask for
    keys: ApiKeys  # who may send requests
    hosts: frozenset[str] | None  # names besides this machine's under which a server without keys answers; None: any
    created: int = 0  # when the artifact was made, seconds since 1970
    metrics_keys: ApiKeys = NO_KEYS  # who may read exact metrics; if empty, all others read rounded ones
    share_prefixes: bool = False  # whether stored prefixes are reused among different keys
    pages: bool = True  # whether the pages for browsers are served, and what only they use


class Service:
    """The application's state. Make it in an event loop.

    Attributes:
        draining: Whether new requests are refused because the server will end.
        ending: Set when grace is over: running requests end with an error.
        body_memory: Bytes of bodies that were received and not read yet, without the first ones of each.
        busy: Requests that are read or answered.
    """

    def __init__(
        self, settings: Settings, backend: Backend, readers: ReaderPool, tracing: Tracing | None = None
    ) -> None:
        self.settings, self.backend, self.readers, self.tracing = settings, backend, readers, tracing
        self.metrics = Metrics(backend.gauges)
        self.body_memory, self.most_body_memory = 0, BODIES * settings.limits.body_bytes
        self.busy, self.most_busy = 0, 1000
        self.draining = False
        self.ending = asyncio.Event()

    def begin(self) -> None:
        """Count a request that has arrived whole; call ``end`` once it is answered."""
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
        if self.backend.state != "ready":
            broken = "The engine ended by an error; see the server's log.", "engine_down"
            raise unavailable(*STATES.get(self.backend.state, broken))

    @contextmanager
    def body(self, request: Request) -> Iterator[Body]:
        """Count the memory of a request's body until the end of the ``with``."""
        body = Body(self, request)
        try:
            yield body
        finally:
            body.count(0)


class Body:
    """A request's body, as it arrives."""

    def __init__(self, service: Service, request: Request) -> None:
        self._service, self._request = service, request
        self._counted = 0

    def count(self, size: int) -> None:
        """Count so many bytes of the body, instead of those before."""
        service, more = self._service, max(0, size - FREE_BYTES) - self._counted
        if more > 0 and service.body_memory + more > service.most_body_memory:
            raise unavailable("Too many large requests are being read at once. Send it again.", "too_many_bodies")
        self._counted += more
        service.body_memory += more

    async def receive(self, started: float) -> bytes:
        """Return the body, whatever its headers say of the size."""
        limits = self._service.settings.limits
        _check_head(self._request, limits)
        left = min(BODY_SECONDS, limits.seconds) - (time.perf_counter() - started)
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(max(0.0, left)):
                while more:
                    message = await self._request.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    body += message.get("body", b"")
                    if len(body) > limits.body_bytes:
                        raise too_large(limits)
                    self.count(len(body))
                    more = message.get("more_body", False)
        except TimeoutError as error:
            raise ApiError(408, "The body did not arrive in time.", "timeout") from error
        return bytes(body)


def _check_head(request: Request, limits: Limits) -> None:
    """Refuse a body for what the headers say of it."""
    kind, _, parameters = request.headers.get("content-type", "").lower().partition(";")
    charset = re.search(r"charset\s*=\s*\"?([^\s;\"]*)", parameters)
    wrong = ""
    if kind.strip() != "application/json":  # a web page cannot send this type to another site without asking first
        wrong = "Send the body as Content-Type: application/json."
    elif charset is not None and charset[1] not in ("utf-8", "utf8", "us-ascii"):
        wrong = "Send the body in UTF-8, not in another charset."
    elif request.headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
        wrong = "Send the body without Content-Encoding: this server does not decompress."
    if wrong:
        raise ApiError(415, wrong, "unsupported_media_type")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > limits.body_bytes:
        raise too_large(limits)


def too_large(limits: Limits) -> ApiError:
    """Return the 413."""
    return ApiError(413, f"The body is larger than {limits.body_bytes} bytes.", "body_too_large")


def error_response(service: Service, error: ApiError) -> Response:
    """Return an error as an answer, and count it."""
    service.metrics.rejected.labels(error.code).inc()
    return JSONResponse(error.body(), error.status, error.headers)


class RequestGuard:
    """ASGI middleware: checks host and key, logs and counts requests, and answers if the application fails."""

    def __init__(self, app: Any, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        scope.setdefault("state", {}).update(started=started, id="req_" + secrets.token_hex(12))
        exchange = HttpExchange(self._service, scope, receive, send)
        try:
            refusal = self._refusal(scope)
            app = self._app if refusal is None else error_response(self._service, refusal)
            await app(scope, exchange.receive, exchange.send)
        except ClientGone:
            exchange.status = 499
        except Exception:
            log.exception("A request failed by a fault of the server: %s", scope["state"]["id"])
            if exchange.status == 499:  # no answer has begun
                error = ApiError(500, "The server failed on this request; see its log.", "internal_error")
                await error_response(self._service, error)(scope, exchange.receive, exchange.send)
        finally:
            status = scope["state"].get("status", exchange.status)
            if (trace := scope["state"].get("trace")) is not None:
                trace.end(status)
            self._note(scope, status, time.perf_counter() - started)

    def _refusal(self, scope: Scope) -> ApiError | None:
        settings = self._service.settings
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        ambiguous = ""  # what a proxy in front may understand in another way
        if b"transfer-encoding" in headers and b"content-length" in headers:
            ambiguous = "Send Content-Length or Transfer-Encoding, not both."
        elif headers.get(b"transfer-encoding", "chunked").strip().lower() != "chunked":
            ambiguous = "The only Transfer-Encoding that is read is chunked."
        elif sum(name.lower() == b"host" for name, _ in scope["headers"]) > 1:
            ambiguous = "Send one Host header."
        if ambiguous:
            return ApiError(400, ambiguous, headers={"Connection": "close"})
        if settings.hosts is not None and not host_allowed(headers.get(b"host"), settings.hosts):
            message = "This server answers under the name of its own machine only; see --allow-host."
            return ApiError(403, message, "host_not_allowed")
        keys = settings.metrics_keys if scope["path"] == METRICS and settings.metrics_keys else settings.keys
        key = scope["state"]["key"] = keys.identify(headers.get(b"authorization"))
        open_paths = (*HEALTH, *PAGES) if settings.pages else HEALTH  # pages hold nothing of the model
        if scope["path"] in open_paths or key is not None:
            return None
        message = "The API key is missing or wrong; send it as Authorization: Bearer KEY."
        return ApiError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")  # a bounded set of labels, whatever paths clients send
        self._service.metrics.requests.labels(route, str(status)).inc()
        if scope["method"] == "POST" and status == 200:
            self._service.metrics.whole.observe(seconds)
        client = (scope.get("client") or ("-",))[0]
        ids = " ".join([scope["state"]["id"], *filter(None, [scope["state"].get("answer")])])
        # Health checks come every few seconds; only one that fails is worth a line.
        level = logging.DEBUG if scope["path"] in HEALTH and status == 200 else logging.INFO
        line = "%s %s %s %d %.0f ms %s"
        log.log(level, line, client, scope["method"], shown(scope["path"]), status, 1e3 * seconds, ids)


class HttpExchange:
    """One request and its answer, as they go through; ``status`` is 499 until there is an answer.

    An error is sent after a bounded rest of the body was received and dropped: a client that is still sending when the
    connection closes cannot read the answer.
    """

    def __init__(self, service: Service, scope: Scope, receive: Receive, send: Send) -> None:
        self.status = 499
        self._service, self._receive, self._send = service, receive, send
        self._id = (b"x-request-id", scope["state"]["id"].encode())
        headers = {name.lower(): value for name, value in scope["headers"]}
        self._body_left = b"content-length" in headers or b"transfer-encoding" in headers
        self._body_waits = b"expect" in headers  # the client sends it after a 100 Continue

    async def receive(self) -> Message:
        """Pass on what the client sends."""
        message = await self._receive()
        self._body_left = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Pass on the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status >= 400 and not self._body_waits:
                await self._drop_body()
            message["headers"] = [*message["headers"], self._id]
            if self._body_left or self._service.draining:
                message["headers"].append((b"connection", b"close"))
        try:
            await self._send(message)
        except OSError as error:
            raise ClientGone from error

    async def _drop_body(self) -> None:
        size = 0
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while self._body_left and size <= DRAIN_BYTES:
                    size += len((await self.receive()).get("body", b""))
        except TimeoutError:
            return  # _body_left makes the connection close
