"""The ASGI application: the same in one process and on Ray Serve, over whatever backend runs the jobs."""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from lucid_deploy.serving.answering import Endpoint, refusal_error
from lucid_deploy.serving.errors import ApiError, no_such_model
from lucid_deploy.serving.fields import MOST_SOLVE_TOKENS
from lucid_deploy.serving.front import HEALTH, METRICS, Exchange, RequestGuard, Service
from lucid_deploy.serving.jobs import Refusal
from lucid_deploy.serving.pages import PAGES, document, page
from lucid_deploy.version import __version__


def build_app(service: Service) -> ASGIApp:
    """Return the application."""
    routes = [Route(path, partial(_health, service)) for path in HEALTH]
    routes += [
        Route("/v1/completions", Endpoint("completion"), methods=["POST"]),
        Route("/v1/chat/completions", Endpoint("chat"), methods=["POST"]),
        Route("/v1/responses", Endpoint("response"), methods=["POST"]),
        Route("/v1/embeddings", _embeddings, methods=["POST"]),
        Route("/v1/models", partial(_models, service)),
        Route("/v1/models/{name:path}", partial(_model, service)),
        Route(METRICS, partial(_metrics, service)),
        Route("/openapi.json", _openapi),
        Route("/version", _version),
    ]
    if service.api.pages:
        routes += [Route(path, _page) for path in PAGES]
        routes += [
            Route("/v1/lucid/solve", partial(_layers, service)),
            Route("/v1/lucid/solve", partial(_solve, service), methods=["POST"]),
        ]
    return RequestGuard(Router(routes, redirect_slashes=False), service)


async def _health(service: Service, request: Request) -> Response:
    try:
        service.check_ready()
    except ApiError as error:
        return JSONResponse({"status": error.code}, 503, error.headers)
    return JSONResponse({"status": "ok"})


async def _embeddings(request: Request) -> Response:
    raise ApiError(404, "This server has no embeddings; its model generates text.", "not_found")


def _model_json(service: Service) -> dict[str, Any]:
    return {
        "id": service.model,
        "object": "model",
        "created": service.created,
        "owned_by": "lucid-deploy",
        "max_model_len": service.limits.context,
        "has_chat_template": service.readers.has_chat_template,
    }


async def _models(service: Service, request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_model_json(service)]})


async def _model(service: Service, request: Request) -> Response:
    name = request.path_params["name"]
    if name != service.model:
        raise no_such_model(name, service.model)
    return JSONResponse(_model_json(service))


async def _metrics(service: Service, request: Request) -> Response:
    text = service.metrics.text(exact=bool(service.api.metrics_keys))
    return Response(text, media_type=service.metrics.content_type)


async def _openapi(request: Request) -> Response:
    return JSONResponse(document())


async def _version(request: Request) -> Response:
    return JSONResponse({"version": __version__})


async def _page(request: Request) -> Response:
    return page(request.url.path)


async def _layers(service: Service, request: Request) -> Response:
    service.check_ready()
    layers = _result(await request.scope["exchange"].during(service.backend.solving_layers()))
    return JSONResponse({"object": "list", "data": layers, "max_tokens": MOST_SOLVE_TOKENS})


async def _solve(service: Service, request: Request) -> Response:
    exchange: Exchange = request.scope["exchange"]
    prepared = await exchange.prepare("solve")
    assert prepared.place is not None
    (ids,) = prepared.job.prompts
    return JSONResponse(_result(await exchange.during(service.backend.solve(list(ids), *prepared.place))))


def _result(found: Any) -> Any:
    """Return what the backend gave, unless it is a refusal."""
    if isinstance(found, Refusal):
        raise refusal_error(found)
    return found
