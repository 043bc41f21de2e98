"""The ASGI application, used in a single process and on Ray Serve; a backend runs its jobs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from typing import Any

import msgspec
from jinja2 import Environment
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from lucid_deploy.generation.text_stream import TextPiece
from lucid_deploy.json_fields import shown
from lucid_deploy.serving import fields
from lucid_deploy.serving.answers import Answer
from lucid_deploy.serving.errors import ApiError
from lucid_deploy.serving.front import HEALTH, METRICS, PAGES, Exchange, Service
from lucid_deploy.serving.responses_api import ResponseAnswer
from lucid_deploy.serving.security import cache_owner
from lucid_deploy.version import __version__

log = logging.getLogger("lucid_deploy.serving")
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


Endpoint = Callable[[Exchange, bytes], Coroutine[Any, Any, Response | None]]  # takes the body; None: already streamed


class App:
    """The ASGI application: calls the endpoint of each request and turns errors into answers."""

    def __init__(self, service: Service) -> None:
        self._service = service
        pages = service.api.pages
        self._routes: dict[str, dict[str, Endpoint]] = {path: {"GET": _page} for path in PAGES if pages}
        for method, path, endpoint, *_ in ROUTES:
            self._routes.setdefault(path, {})[method] = endpoint
        self._kinds = {path: kind for _, path, _, _, kind in ROUTES if kind is not None}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the lifespan protocol, which Ray needs
            for event in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{event}.complete"})
            return
        exchange = Exchange(self._service, scope, receive, send)
        try:
            exchange.check()
            endpoint = self._endpoint(exchange)
            body = await exchange.body() if scope["method"] == "POST" else b""
            answer = await exchange.during(endpoint(exchange, body))
            if answer is not None:
                await answer(scope, receive, exchange.send)
        except ClientDisconnect:
            exchange.status = 499
        except ApiError as error:
            await exchange.refuse(error)
        except Exception:
            log.exception("A request failed because of an error in the server: %s", exchange.id)
            await exchange.refuse(ApiError(500, "The server failed on this request; see its log.", "internal_error"))
        finally:
            exchange.end()

    def _endpoint(self, exchange: Exchange) -> Endpoint:
        method, path = exchange.scope["method"], exchange.scope["path"]
        if path not in self._routes:
            raise ApiError(404, f"There is no {shown(path)}; /openapi.json lists all paths.", "not_found")
        exchange.route, exchange.kind, methods = path, self._kinds.get(path), self._routes[path]
        handled_as = "GET" if method == "HEAD" else method  # uvicorn sends no body in answer to HEAD
        if handled_as not in methods:
            known = ", ".join([*methods, *(["HEAD"] if "GET" in methods else [])])
            raise ApiError(405, f"The methods of {path} are {known}.", "method_not_allowed", headers={"Allow": known})
        return methods[handled_as]


async def _health(exchange: Exchange, _: bytes) -> Response:
    exchange.service.check_ready()
    return JSONResponse({"status": "ok"})


def _model_json(service: Service, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "lucid-deploy",
        "max_model_len": service.setup.context,
        "has_chat_template": service.readers.has_chat_template,
        **({} if name == service.setup.models[0] else {"parent": service.setup.models[0]}),
    }


async def _models(exchange: Exchange, _: bytes) -> Response:
    service = exchange.service
    return JSONResponse({"object": "list", "data": [_model_json(service, name) for name in service.setup.models]})


async def _metrics(exchange: Exchange, _: bytes) -> Response:
    metrics = exchange.service.metrics
    return Response(metrics.text(), media_type=metrics.content_type)


async def _openapi(*_: object) -> Response:
    return JSONResponse(document())


async def _version(*_: object) -> Response:
    return JSONResponse({"version": __version__})


async def _page(exchange: Exchange, _: bytes) -> Response:
    name, kind = PAGES[exchange.route]
    return Response(_page_text(name), media_type=kind, headers=PAGE_HEADERS)


@lru_cache
def _page_text(name: str) -> str:
    text = (files("lucid_deploy.serving") / "web" / name).read_text(encoding="utf-8")
    if name != "docs.html":
        return text
    return Environment(autoescape=True, trim_blocks=True).from_string(text).render(document())


async def _generate(exchange: Exchange, body: bytes) -> Response | None:
    """Generate a completion, a chat or a response; return None if the answer was streamed."""
    service = exchange.service
    assert exchange.kind is not None
    job = await service.readers.read(body, exchange.kind, exchange.key)
    exchange.count(0)  # the limit is for bodies that are not read yet
    owner = cache_owner("" if service.api.share_prefixes else exchange.key, job.cache_salt)
    common = replace(job.request, client=exchange.key, cache_owner=owner)
    job = replace(job, request=common)
    form = ResponseAnswer if exchange.kind == "response" else Answer
    answer = form(job, common.adapter or service.setup.models[0])
    exchange.answer, begun, token_times = answer, False, dict[int, float]()
    async with aclosing(service.backend.generate(job)) as batches:
        async for events in batches:
            first, begun = not begun, True
            chunks = answer.opening() if first else []
            for event in events:
                _observe(exchange, event, token_times)
                chunks += answer.take(event)
            if first:
                service.metrics.prompt_tokens.inc(job.prompt_tokens)
            if job.stream:
                if first:  # only now: a request that the engine refuses gets an HTTP status of its own
                    await exchange.send({"type": "http.response.start", "status": 200, "headers": SSE_HEADERS})
                await exchange.send({"type": "http.response.body", "body": answer.frames(chunks), "more_body": True})
    if not answer.is_complete:
        raise RuntimeError("The events of a job ended before its generations.")
    if not job.stream:
        return Response(msgspec.json.encode(answer.whole()), media_type="application/json")
    await exchange.send({"type": "http.response.body", "body": answer.ending()})
    return None


def _observe(exchange: Exchange, event: TextPiece, token_times: dict[int, float]) -> None:
    """Record an event's token in the metrics; ``token_times`` has the time of each row's last token."""
    if event.tokens:
        metrics, now = exchange.service.metrics, time.perf_counter()
        if exchange.first_token is None:
            exchange.first_token = now - exchange.started
            metrics.first.observe(exchange.first_token)
        if event.row in token_times:
            metrics.between.observe(now - token_times[event.row])
        token_times[event.row] = now
        metrics.new_tokens.inc()


Route = tuple[str, str, Endpoint, str, fields.Kind | None]  # method, path, endpoint, summary, kind of body
ROUTES: list[Route] = [
    ("POST", "/v1/completions", _generate, "Continue a prompt.", "completion"),
    ("POST", "/v1/chat/completions", _generate, "Answer a chat.", "chat"),
    ("POST", "/v1/responses", _generate, "Answer a text or a chat (Responses API).", "response"),
    ("GET", "/v1/models", _models, "List the served model and its adapters.", None),
    *(("GET", path, _health, "Whether the server accepts requests. Needs no key.", None) for path in HEALTH),
    ("GET", "/version", _version, "The version of lucid-deploy.", None),
    ("GET", METRICS, _metrics, "Metrics, in Prometheus' text format.", None),
    ("GET", "/openapi.json", _openapi, "This document.", None),
]


@lru_cache
def document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document; its schemas come from the classes that decode the bodies."""
    prefix = "#/components/schemas/"
    _, schemas = msgspec.json.schema_components(fields.BODIES.values(), ref_template=prefix + "{name}")
    schemas["InputMessage"]["required"].remove("type")  # optional: ``responses_api.prepare`` adds a missing one
    parts = {name: {"type": ["string", "null"]} for name in ("message", "type", "param", "code")}
    schemas["Error"] = {"type": "object", "required": ["error"], "properties": {"error": {"properties": parts}}}

    def content(name: str) -> dict[str, Any]:
        return {"content": {"application/json": {"schema": {"$ref": prefix + name}}}}

    paths: dict[str, dict[str, Any]] = {}
    for method, path, _, summary, kind in ROUTES:
        answers = {"200": {"description": "The answer."}, "default": {"description": "An error.", **content("Error")}}
        operation: dict[str, Any] = {"summary": summary, "responses": answers}
        paths.setdefault(path, {})[method.lower()] = operation
        if kind is not None:
            operation["requestBody"] = {"required": True, **content(fields.BODIES[kind].__name__)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "lucid-deploy", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}, {}],
    }
