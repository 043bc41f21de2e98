"""The FastAPI application: the same in one process and on Ray Serve, over whatever backend runs the jobs."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from lucid_deploy.json_fields import shown
from lucid_deploy.serving.answering import answer, preparing
from lucid_deploy.serving.bodies import MOST_SOLVE_TOKENS
from lucid_deploy.serving.errors import ApiError, invalid, queue_full, timed_out, unavailable
from lucid_deploy.serving.front import METRICS, RequestGuard, error_response
from lucid_deploy.serving.jobs import Refusal
from lucid_deploy.serving.openapi import document
from lucid_deploy.serving.pages import PAGES, page
from lucid_deploy.serving.service import Service
from lucid_deploy.version import __version__

# FastAPI's own spans and logs would have texts of errors in them, and be turned on by environment variables.
NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}


def build_app(service: Service) -> FastAPI:
    """Return the application."""
    app = FastAPI(title="lucid-deploy", openapi_url=None, docs_url=None, redoc_url=None, telemetry=NO_TELEMETRY)

    @app.api_route("/health", methods=["GET", "HEAD"])
    @app.api_route("/healthz", methods=["GET", "HEAD"])
    async def health() -> Response:
        try:
            service.check_ready()
        except ApiError as error:
            return JSONResponse({"status": error.code}, 503, {"Retry-After": "5"})
        return JSONResponse({"status": "ok"})

    @app.get(METRICS)
    async def metrics() -> Response:
        text = service.metrics.text(exact=bool(service.settings.metrics_keys))
        return Response(text, media_type=service.metrics.content_type)

    @app.get("/openapi.json")
    async def openapi() -> Response:
        return JSONResponse(document())

    @app.get("/version")
    async def version() -> Response:
        return JSONResponse({"version": __version__})

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [service.model_json()]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        service.check_model(name)
        return JSONResponse(service.model_json())

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answer(service, request, "completion")

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await answer(service, request, "chat")

    @app.post("/v1/responses")
    async def responses(request: Request) -> Response:
        return await answer(service, request, "response")

    @app.post("/v1/embeddings")
    async def embeddings() -> Response:
        message = "This server has no embeddings; it answers /v1/completions, /v1/chat/completions and /v1/responses."
        raise ApiError(404, message, "not_supported")

    if service.settings.pages:

        @app.get("/v1/lucid/solve")
        async def layers() -> Response:
            service.check_ready()
            try:
                async with asyncio.timeout(service.settings.limits.seconds):
                    layers = _found(await service.backend.solving_layers())
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
                return JSONResponse(_found(await cancellation.during(work)))

        for path in PAGES:
            app.add_api_route(path, page(path), methods=["GET", "HEAD"])

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


def _found(found: Any) -> Any:
    """Return what a backend found."""
    if not isinstance(found, Refusal):
        return found
    if found.kind == "queue_full":
        raise queue_full(found.retry_after)
    if found.kind == "unsupported":
        raise ApiError(501, found.message, "not_supported")
    if found.kind == "invalid":
        raise invalid(found.message, found.param, "invalid_value" if found.param else None)
    raise unavailable(found.message, "engine_down")
