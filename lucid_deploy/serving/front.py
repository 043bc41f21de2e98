"""Around every request: who may ask, how its body arrives, a line in the log, a count in the metrics."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from lucid_deploy.json_fields import shown
from lucid_deploy.serving.errors import ApiError, ClientGone
from lucid_deploy.serving.limits import BodyShare, Limits
from lucid_deploy.serving.pages import PAGES
from lucid_deploy.serving.security import host_allowed
from lucid_deploy.serving.service import Service

log = logging.getLogger("lucid_deploy.serving")
HEALTH = ("/healthz", "/health")
METRICS = "/metrics"
DRAIN_SECONDS, DRAIN_BYTES = 2.0, 16 << 20  # of a body that is not needed
BODY_SECONDS = 30.0  # for a body to arrive


class RequestGuard:
    """ASGI middleware: checks host and key, logs and counts requests, and answers if the application fails."""

    def __init__(self, app: Any, service: Service) -> None:
        self._app = app
        self._service = service

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
            if refusal is not None:
                await error_response(self._service, refusal)(scope, exchange.receive, exchange.send)
                return
            await self._app(scope, exchange.receive, exchange.send)
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
        if b"transfer-encoding" in headers and b"content-length" in headers:  # servers differ on which one counts
            message = "Send Content-Length or Transfer-Encoding, not both."
            return ApiError(400, message, "invalid_request", headers={"Connection": "close"})
        if headers.get(b"transfer-encoding", "chunked").strip().lower() != "chunked":
            message = "The only Transfer-Encoding that is read is chunked."
            return ApiError(400, message, "invalid_request", headers={"Connection": "close"})
        if sum(name.lower() == b"host" for name, _ in scope["headers"]) > 1:
            return ApiError(400, "Send one Host header.", "invalid_request", headers={"Connection": "close"})
        if settings.hosts is not None and not host_allowed(headers.get(b"host"), settings.hosts):
            message = "This server answers under the name of its own machine only; see --allow-host."
            return ApiError(403, message, "host_not_allowed")
        keys = settings.metrics_keys if scope["path"] == METRICS and settings.metrics_keys else settings.keys
        key = keys.identify(headers.get(b"authorization"))
        scope["state"]["key"] = key
        open_paths = (*HEALTH, *PAGES) if settings.pages else HEALTH  # pages hold nothing of the model
        if scope["path"] in open_paths or key is not None:
            return None
        message = "The API key is missing or wrong; send it as Authorization: Bearer KEY."
        return ApiError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")  # a bounded set of labels, whatever is asked for
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
    """One request and its answer, as they go through.

    An error that comes before the whole body has arrived is sent after a bounded rest of the body was received and
    dropped: a client that is still sending when the connection closes cannot read the answer.

    Attributes:
        status: Of the answer; 499 before there is one, and what is counted if the client disconnects before its end.
    """

    def __init__(self, service: Service, scope: Scope, receive: Receive, send: Send) -> None:
        self.status = 499
        self._service = service
        self._receive = receive
        self._send = send
        self._id = (b"x-request-id", scope["state"]["id"].encode())
        headers = {name.lower(): value for name, value in scope["headers"]}
        self._body_left = b"content-length" in headers or b"transfer-encoding" in headers
        self._body_waits = b"expect" in headers  # the client sends it when it is asked to

    async def receive(self) -> Message:
        """Pass on what the client sends."""
        message = await self._receive()
        self._body_left = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Pass on the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status >= 400 and self._body_left and not self._body_waits:
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


def error_response(service: Service, error: ApiError) -> Response:
    """Return an error as an answer, and count it."""
    service.metrics.rejected.labels(error.code or "invalid_request").inc()
    return JSONResponse(error.body(), error.status, error.headers)


async def read_body(request: Request, limits: Limits, started: float, share: BodyShare) -> bytes:
    """Return a request's body, whatever its headers say of the size."""
    _check_head(request, limits)
    left = min(BODY_SECONDS, limits.seconds) - (time.perf_counter() - started)
    body = bytearray()
    more = True
    try:
        async with asyncio.timeout(max(0.0, left)):
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                body += message.get("body", b"")
                if len(body) > limits.body_bytes:
                    raise too_large(limits)
                share.grow(len(body))
                more = message.get("more_body", False)
    except TimeoutError as error:
        raise ApiError(408, "The body did not arrive in time.", "timeout") from error
    return bytes(body)


def _check_head(request: Request, limits: Limits) -> None:
    """Refuse a body for what the headers say of it."""
    kind, _, parameters = request.headers.get("content-type", "").lower().partition(";")
    if kind.strip() != "application/json":  # a web page cannot send this type to another site without asking first
        raise _unsupported("Send the body as Content-Type: application/json.")
    charset = re.search(r"charset\s*=\s*\"?([^\s;\"]*)", parameters)
    if charset is not None and charset[1] not in ("utf-8", "utf8", "us-ascii"):
        raise _unsupported("Send the body in UTF-8, not in another charset.")
    if request.headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
        raise _unsupported("Send the body without Content-Encoding: this server does not decompress.")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > limits.body_bytes:
        raise too_large(limits)


def _unsupported(message: str) -> ApiError:
    return ApiError(415, message, "unsupported_media_type")


def too_large(limits: Limits) -> ApiError:
    """Return the 413."""
    return ApiError(413, f"The body is larger than {limits.body_bytes} bytes.", "body_too_large")
