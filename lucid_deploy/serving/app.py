"""The ASGI application: the same in one process and on Ray Serve, over whatever backend runs the jobs."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from typing import Any

import msgspec
from jinja2 import Environment
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from lucid_deploy.generation.text_stream import TextPiece
from lucid_deploy.serving.answers import Answer, Events
from lucid_deploy.serving.engine import Refusal
from lucid_deploy.serving.errors import ApiError, no_such_model, refusal_error
from lucid_deploy.serving.fields import (
    MOST_SOLVE_TOKENS,
    ChatRequest,
    CompletionRequest,
    ResponseRequest,
    SolveRequest,
)
from lucid_deploy.serving.front import HEALTH, METRICS, PAGES, Exchange, RequestGuard, Service
from lucid_deploy.serving.jobs import Event, RowEnd, RowMark
from lucid_deploy.serving.requests import Kind
from lucid_deploy.serving.responses_api import ResponseAnswer
from lucid_deploy.serving.security import cache_owner
from lucid_deploy.version import __version__

CACHED_STEP = 128  # tokens; OpenAI counts reused ones in such steps, and exact counts could reveal others' prompts
SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def build_app(service: Service) -> ASGIApp:
    """Return the application."""
    rows = [*ROUTES, *SOLVE_ROUTES] if service.api.pages else ROUTES
    routes = [Route(path, endpoint, methods=[method]) for method, path, endpoint, _ in rows]
    if service.api.pages:
        routes += [Route(path, _page) for path in PAGES]
    return RequestGuard(Router(routes, redirect_slashes=False), service)


def _service(request: Request) -> Service:
    exchange: Exchange = request.scope["exchange"]
    return exchange.service


async def _health(request: Request) -> Response:
    try:
        _service(request).check_ready()
    except ApiError as error:
        return JSONResponse({"status": error.code}, 503, error.headers)
    return JSONResponse({"status": "ok"})


def _model_json(service: Service, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": service.setup.created,
        "owned_by": "lucid-deploy",
        "max_model_len": service.limits.context,
        "has_chat_template": service.readers.has_chat_template,
        **({} if name == service.setup.model else {"parent": service.setup.model}),
    }


async def _models(request: Request) -> Response:
    service = _service(request)
    return JSONResponse({"object": "list", "data": [_model_json(service, name) for name in service.models]})


async def _model(request: Request) -> Response:
    name, service = request.path_params["name"], _service(request)
    if name not in service.models:
        raise no_such_model(name, *service.models)
    return JSONResponse(_model_json(service, name))


async def _metrics(request: Request) -> Response:
    service = _service(request)
    text = service.metrics.text(exact=bool(service.api.metrics_keys))
    return Response(text, media_type=service.metrics.content_type)


async def _openapi(request: Request) -> Response:
    return JSONResponse(document())


async def _version(request: Request) -> Response:
    return JSONResponse({"version": __version__})


async def _page(request: Request) -> Response:
    name, kind = PAGES[request.url.path]
    return Response(_page_text(name), media_type=kind, headers=PAGE_HEADERS)


@lru_cache
def _page_text(name: str) -> str:
    text = (files("lucid_deploy.serving") / "web" / name).read_text(encoding="utf-8")
    if name != "docs.html":
        return text
    return Environment(autoescape=True, trim_blocks=True).from_string(text).render(document())


async def _layers(request: Request) -> Response:
    service = _service(request)
    service.check_ready()
    layers = await request.scope["exchange"].during(service.backend.solving_layers())
    return JSONResponse({"object": "list", "data": layers, "max_tokens": MOST_SOLVE_TOKENS})


async def _solve(request: Request) -> Response:
    exchange: Exchange = request.scope["exchange"]
    body = await exchange.accept()

    async def solved() -> dict[str, Any]:
        prepared = await exchange.read(body, "solve")
        assert prepared.place is not None
        (ids,) = prepared.job.prompts
        return await exchange.service.backend.solve(list(ids), *prepared.place, prepared.job.adapter)

    return JSONResponse(await exchange.during(solved()))


class Endpoint:
    """Answers requests of one kind: completions, chats or responses."""

    def __init__(self, kind: Kind) -> None:
        self._kind: Kind = kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope["exchange"]
        exchange.kind = self._kind
        body = await exchange.accept()
        whole = await exchange.during(self._answer(exchange, body))
        if whole is not None:
            await Response(whole, media_type="application/json")(scope, receive, send)

    async def _answer(self, exchange: Exchange, body: bytes) -> bytes | None:
        """Run the request; return the answer as JSON, or None if it was streamed."""
        service = exchange.service
        request = await exchange.read(body, self._kind)
        owner = cache_owner("" if service.api.share_prefixes else exchange.key, request.cache_salt)
        request = replace(request, job=replace(request.job, client=exchange.key, cache_owner=owner))
        form = ResponseAnswer if self._kind == "response" else Answer
        answer = form(request, request.job.adapter or service.setup.model, service.setup.fingerprint)
        exchange.answer = answer
        async with (
            aclosing(service.backend.generate(request.job)) as events,
            aclosing(RunningAnswer(exchange, answer).chunks(events)) as batches,
        ):
            first = await anext(batches)  # so that a refusal has its own HTTP status
            service.metrics.prompt_tokens.inc(request.prompt_tokens)
            if not request.stream:
                async for _ in batches:
                    pass
                return msgspec.json.encode(answer.whole())
            await exchange.send({"type": "http.response.start", "status": 200, "headers": SSE_HEADERS})
            await exchange.send_events(answer.opening() + first)
            async for batch in batches:
                await exchange.send_events(batch)
        await exchange.send_events(answer.ending(), end=True)
        return None


class RunningAnswer:
    """The events of a job on their way into its answer."""

    def __init__(self, exchange: Exchange, answer: Answer) -> None:
        self._exchange, self._answer = exchange, answer
        self._last: dict[int, float] = {}  # when each generation's last token came, by time.perf_counter

    async def chunks(self, events: AsyncIterator[list[Event]]) -> AsyncGenerator[Events, None]:
        """Yield what a stream sends for the events of a job, a list for each time that some come."""
        async for batch in events:
            self._exchange.marks += [event for event in batch if isinstance(event, RowMark)]
            shown = [event for event in batch if not isinstance(event, RowMark)]
            if shown:
                yield [chunk for event in shown for chunk in self._take(event)]
        if len(self._exchange.reasons) < self._answer.request.job.rows:
            raise RuntimeError("The events of a job ended before its generations.")

    def _take(self, event: TextPiece | RowEnd | Refusal) -> Events:
        if isinstance(event, Refusal):
            raise refusal_error(event)
        if isinstance(event, TextPiece):
            if event.tokens:
                self._tick(event.row)
            return self._answer.chunks(event)
        self._exchange.reasons[event.row] = event.reason
        self._exchange.marks.append(RowMark(event.row, "end", time.time_ns()))
        if event.reason == "invalid":
            raise ApiError(400, event.message)
        if event.reason == "error":
            raise ApiError(500, event.message, "engine_error")
        if event.row % self._answer.request.job.n == 0:  # count each prompt once, as prompt_tokens does
            self._answer.cached_tokens += event.reused - event.reused % CACHED_STEP
        return self._answer.closing(event.row, event.reason)

    def _tick(self, row: int) -> None:
        metrics, now = self._exchange.service.metrics, time.perf_counter()
        if not self._last:
            self._exchange.first_token = now - self._exchange.started
            metrics.first.observe(self._exchange.first_token)
        if row in self._last:
            metrics.between.observe(now - self._last[row])
        self._last[row] = now
        metrics.new_tokens.inc()


RouteRow = tuple[str, str, Callable[..., Any], str]  # method, path, endpoint, what it does
ROUTES: list[RouteRow] = [
    ("POST", "/v1/completions", Endpoint("completion"), "Continue a prompt."),
    ("POST", "/v1/chat/completions", Endpoint("chat"), "Answer a chat."),
    ("POST", "/v1/responses", Endpoint("response"), "Answer a text or a chat, by the Responses API."),
    ("GET", "/v1/models", _models, "The model that is served, and its adapters."),
    ("GET", "/v1/models/{name:path}", _model, "One model."),
    *(("GET", path, _health, "Whether requests are taken. Needs no key.") for path in HEALTH),
    ("GET", "/version", _version, "The version of lucid-deploy."),
    ("GET", METRICS, _metrics, "Metrics, in Prometheus' text format."),
    ("GET", "/openapi.json", _openapi, "This document."),
]
SOLVE_ROUTES: list[RouteRow] = [
    ("GET", "/v1/lucid/solve", _layers, "The layers that solve a system. Off with --no-ui."),
    ("POST", "/v1/lucid/solve", _solve, "What a layer solves over a short text. Off with --no-ui."),
]
BODIES = (CompletionRequest, ChatRequest, ResponseRequest, SolveRequest)  # of the POSTs, in that order


@lru_cache
def document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document, which has the schemas of bodies as the structs have them."""
    bodies, schemas = msgspec.json.schema_components(BODIES, ref_template="#/components/schemas/{name}")
    schemas["InputMessage"]["required"].remove("type")  # the reader adds it
    text, maybe = {"type": "string"}, {"type": ["string", "null"]}
    detail = {"type": "object", "properties": {"message": text, "type": text, "param": maybe, "code": maybe}}
    schemas["Error"] = {"type": "object", "required": ["error"], "properties": {"error": detail}}
    errors = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    left = iter(bodies)
    paths: dict[str, dict[str, Any]] = {}
    for method, path, _, summary in (*ROUTES, *SOLVE_ROUTES):
        responses = {"200": {"description": "The answer."}, "default": {"description": "An error.", "content": errors}}
        operation: dict[str, Any] = {"summary": summary, "responses": responses}
        if method == "POST":
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": next(left)}}}
        if "{name" in path:
            operation["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
        paths.setdefault(path.replace(":path", ""), {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "lucid-deploy", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}, {}],
    }
