"""The FastAPI application: the same in one process and on Ray Serve, over whatever backend runs the jobs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from lucid_deploy.json_fields import shown
from lucid_deploy.serving.answering import EventStream, whole_answer
from lucid_deploy.serving.errors import ApiError, ClientGone, no_such_model, unavailable
from lucid_deploy.serving.jobs import Backend
from lucid_deploy.serving.limits import Limits
from lucid_deploy.serving.metrics import Metrics, TokenClock
from lucid_deploy.serving.openapi import document
from lucid_deploy.serving.requests import PreparedRequest, RequestReader
from lucid_deploy.serving.responses import Answer
from lucid_deploy.serving.security import ApiKeys, host_allowed

log = logging.getLogger("lucid_deploy.serving")
OPEN_PATHS = ("/healthz",)
BODY_SECONDS = 30.0  # for a body to arrive
DRAIN_SECONDS, DRAIN_BYTES = 2.0, 16 << 20  # of a body that is too large
CLOSE = {"Connection": "close"}
THREAD_FROM = 20_000  # bytes of body from which reading and tokenizing leaves the event loop to others


@dataclass
class Settings:
    """What an application serves, and to whom.

    Attributes:
        model: Name that requests must give.
        fingerprint: Names the artifact.
        limits: What a request may ask for.
        keys: Who may ask.
        hosts: Names besides this machine's under which a server without keys answers; None: any.
        created: When the artifact was made, seconds since 1970.
    """

    model: str
    fingerprint: str
    limits: Limits
    keys: ApiKeys
    hosts: frozenset[str] | None
    created: int = 0


class Service:
    """The application's state.

    Args:
        settings: What it serves, and to whom.
        backend: Runs the jobs.
        reader: Reads bodies.
    """

    def __init__(self, settings: Settings, backend: Backend, reader: RequestReader) -> None:
        self.settings = settings
        self.backend = backend
        self.reader = reader
        self.metrics = Metrics(backend.gauges)
        self.draining = False
        self.ending = asyncio.Event()  # set when grace is over: running requests end with an error
        self.busy = 0  # requests that generate

    def check_ready(self) -> None:
        """Refuse requests while loading, stopping or broken.

        Raises:
            ApiError: 503.
        """
        if self.draining:
            raise unavailable("The server is shutting down.", "shutting_down")
        if self.backend.state == "loading":
            raise unavailable("The model is still loading.", "loading")
        if self.backend.state != "ready":
            raise unavailable("The engine ended by an error; see the server's log.", "engine_down")

    async def generate(self, request: Request, read: Callable[[bytes], PreparedRequest], started: float) -> Response:
        """Answer a request for completions or a chat."""
        self.check_ready()
        deadline = started + self.settings.limits.seconds
        body = await _read_body(request, self.settings.limits, started)
        if len(body) >= THREAD_FROM:
            prepared = await asyncio.to_thread(read, body)
        else:
            prepared = read(body)
        self.check_ready()  # again: the body may have taken its time
        answer = Answer(prepared, self.settings.model, self.settings.fingerprint)
        clock = TokenClock(self.metrics, started)
        stream = EventStream(self, answer, clock, deadline)
        await stream.begin(request.receive)  # until the first event, so that a refusal has its own HTTP status
        self.metrics.prompt_tokens.inc(prepared.prompt_tokens)
        return stream if prepared.stream else await whole_answer(stream, request.receive)

    def check_model(self, name: str) -> None:
        """Refuse other models' names.

        Raises:
            ApiError: 404.
        """
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
        }


def build_app(service: Service) -> FastAPI:
    """Return the application."""
    app = FastAPI(title="lucid-deploy", openapi_url=None, docs_url=None, redoc_url=None)

    @app.get("/healthz")
    async def health() -> Response:
        try:
            service.check_ready()
        except ApiError as error:
            return JSONResponse({"status": error.code}, 503, {"Retry-After": "5"})
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=service.metrics.content_type)

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [service.model_json()]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        service.check_model(name)
        return JSONResponse(service.model_json())

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await service.generate(request, service.reader.completion, request.state.started)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await service.generate(request, service.reader.chat, request.state.started)

    @app.get("/openapi.json")
    async def openapi() -> Response:
        return JSONResponse(document())

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return _error_response(service, error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        allowed = dict(error.headers or {})
        message = f"{request.method} {shown(request.url.path)}: {error.detail}."
        return _error_response(service, ApiError(error.status_code, message, "not_found", headers=allowed))

    app.add_middleware(_Guard, service=service)
    return app


def _error_response(service: Service, error: ApiError) -> Response:
    service.metrics.rejected.labels(error.code or "invalid_request").inc()
    return JSONResponse(error.body(), error.status, error.headers)


class _Guard:
    """Around every request: who may ask, a line in the log, a count in the metrics, and an answer in any case."""

    def __init__(self, app: Any, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        scope.setdefault("state", {})["started"] = started
        status = 499  # what is counted if the client leaves before there is an answer

        async def noting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await _error_response(self._service, refusal)(scope, receive, noting_send)
                return
            await self._app(scope, receive, noting_send)
        except (ClientGone, OSError):  # OSError: noticed while sending
            status = 499
        except Exception:
            log.exception("A request failed by a fault of the server.")
            if status == 499:
                error = ApiError(500, "The server failed on this request; see its log.", "internal_error")
                await _error_response(self._service, error)(scope, receive, noting_send)
            else:
                raise
        finally:
            self._note(scope, scope.get("state", {}).get("status", status), time.perf_counter() - started)

    def _refusal(self, scope: Scope) -> ApiError | None:
        settings = self._service.settings
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if settings.hosts is not None and not host_allowed(headers.get(b"host"), settings.hosts):
            message = "This server answers under the name of its own machine only; see --allow-host."
            return ApiError(403, message, "host_not_allowed")
        if scope["path"] in OPEN_PATHS or settings.keys.allow(headers.get(b"authorization")):
            return None
        message = "The API key is missing or wrong; send it as Authorization: Bearer KEY."
        return ApiError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")  # a bounded set of labels, whatever is asked for
        self._service.metrics.requests.labels(route, str(status)).inc()
        if scope["method"] == "POST" and status == 200:
            self._service.metrics.whole.observe(seconds)
        client = (scope.get("client") or ("-",))[0]
        log.info("%s %s %s %d %.0f ms", client, scope["method"], shown(scope["path"]), status, 1e3 * seconds)


async def _read_body(request: Request, limits: Limits, started: float) -> bytes:
    """Read the body up to the limit, whatever its headers say.

    Raises:
        ApiError: It is too large, of another type, or too slow.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a web page cannot send this type to another site without asking first
        raise ApiError(415, "Send the body as Content-Type: application/json.", "unsupported_media_type")
    length = request.headers.get("content-length", "0")
    too_large = not length.isdecimal() or int(length[:20]) > limits.body_bytes
    left = min(BODY_SECONDS, limits.seconds) - (time.perf_counter() - started)
    try:
        async with asyncio.timeout(DRAIN_SECONDS if too_large else max(0.0, left)):
            body, complete = await _receive(request, 0 if too_large else limits.body_bytes)
    except TimeoutError as error:
        if not too_large:
            raise ApiError(408, "The body did not arrive in time.", "timeout", headers=CLOSE) from error
        body, complete = None, False
    if body is None:
        message = f"The body is larger than {limits.body_bytes} bytes."
        raise ApiError(413, message, "body_too_large", headers={} if complete else CLOSE)
    return body


async def _receive(request: Request, limit: int) -> tuple[bytes | None, bool]:
    """Receive a body; return it, or None if it is too large, and whether it has come to its end.

    Of a body that is too large a bounded rest is read and dropped: a client that is still sending when the connection
    closes does not get to read why.
    """
    parts: list[bytes] = []
    size = 0
    while size <= limit + DRAIN_BYTES:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size <= limit:
            parts.append(part)
        else:
            parts.clear()
        if not message.get("more_body", False):
            return (b"".join(parts) if size <= limit else None), True
    return None, False
