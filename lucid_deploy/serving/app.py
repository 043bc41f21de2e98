"""The FastAPI application: the same in one process and on Ray Serve, over whatever backend runs the jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from lucid_deploy.json_fields import shown
from lucid_deploy.serving.answering import answer, preparing, refusal_error
from lucid_deploy.serving.engine import Refusal
from lucid_deploy.serving.errors import ApiError, no_such_model, timed_out
from lucid_deploy.serving.fields import MOST_SOLVE_TOKENS
from lucid_deploy.serving.front import HEALTH, METRICS, RequestGuard, Service, error_response
from lucid_deploy.serving.pages import PAGES, document, page
from lucid_deploy.serving.requests import Kind
from lucid_deploy.version import __version__

# FastAPI's own spans and logs would have texts of errors in them, and be turned on by environment variables.
NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}
ANSWERS: dict[str, Kind] = {
    "/v1/completions": "completion",
    "/v1/chat/completions": "chat",
    "/v1/responses": "response",
}


def build_app(service: Service) -> FastAPI:
    """Return the application."""
    app = FastAPI(title="lucid-deploy", openapi_url=None, docs_url=None, redoc_url=None, telemetry=NO_TELEMETRY)
    _add_facts(app, service)
    for path, kind in ANSWERS.items():
        app.add_api_route(path, _answering(service, kind), methods=["POST"])
    if service.settings.pages:
        _add_pages(app, service)

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return error_response(service, error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {shown(request.url.path)}: {error.detail}."
        code = HTTP_CODES.get(error.status_code, "invalid_request")
        return error_response(service, ApiError(error.status_code, message, code, headers=dict(error.headers or {})))

    app.add_middleware(RequestGuard, service=service)
    return app


def _answering(service: Service, kind: Kind) -> Callable[[Request], Awaitable[Response]]:
    async def answers(request: Request) -> Response:
        return await answer(service, request, kind)

    return answers


def _add_facts(app: FastAPI, service: Service) -> None:
    """Add the paths that say something of the server."""
    settings = service.settings

    async def health() -> Response:
        try:
            service.check_ready()
        except ApiError as error:
            return JSONResponse({"status": error.code}, 503, {"Retry-After": "5"})
        return JSONResponse({"status": "ok"})

    for path in HEALTH:
        app.add_api_route(path, health, methods=["GET", "HEAD"])

    @app.get(METRICS)
    async def metrics() -> Response:
        text = service.metrics.text(exact=bool(settings.metrics_keys))
        return Response(text, media_type=service.metrics.content_type)

    @app.get("/openapi.json")
    async def openapi() -> Response:
        return JSONResponse(document())

    @app.get("/version")
    async def version() -> Response:
        return JSONResponse({"version": __version__})

    def model_json() -> dict[str, Any]:
        return {
            "id": settings.model,
            "object": "model",
            "created": settings.created,
            "owned_by": "lucid-deploy",
            "max_model_len": settings.limits.context,
            "has_chat_template": service.readers.has_chat_template,
        }

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [model_json()]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        if name != settings.model:
            raise no_such_model(name, settings.model)
        return JSONResponse(model_json())


def _add_pages(app: FastAPI, service: Service) -> None:
    """Add the pages for browsers, and the weights that they show."""

    def found(result: Any) -> Any:
        if isinstance(result, Refusal):
            raise refusal_error(result)
        return result

    @app.get("/v1/lucid/solve")
    async def layers() -> Response:
        service.check_ready()
        try:
            async with asyncio.timeout(service.settings.limits.seconds):
                layers = found(await service.backend.solving_layers())
        except TimeoutError as error:  # a step of the model does not end
            raise timed_out(service.settings.limits.seconds) from error
        return JSONResponse({"object": "list", "data": layers, "max_tokens": MOST_SOLVE_TOKENS})

    @app.post("/v1/lucid/solve")
    async def weights(request: Request) -> Response:
        service.check_ready()
        async with preparing(service, request, "solve") as (prepared, cancellation):
            assert prepared.place is not None
            (ids,) = prepared.job.prompts
            work = service.backend.solve(list(ids), *prepared.place)
            return JSONResponse(found(await cancellation.during(work)))

    for path in PAGES:
        app.add_api_route(path, partial(_page, path), methods=["GET", "HEAD"])


async def _page(path: str) -> Response:
    return page(path)
