"""``/v1/lucid/solve``: what a LUCID layer solves over a short text, for people who want to see it."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lucid_deploy.serving.answering import preparing
from lucid_deploy.serving.bodies import MOST_SOLVE_TOKENS
from lucid_deploy.serving.errors import ApiError, invalid, queue_full, unavailable
from lucid_deploy.serving.jobs import Refusal
from lucid_deploy.serving.service import Service


async def solving_layers(service: Service) -> Response:
    """Answer which layers solve a system.

    Raises:
        ApiError: The engine is not running.
    """
    service.check_ready()
    layers = _checked(await service.backend.solving_layers())
    return JSONResponse({"object": "list", "data": layers, "max_tokens": MOST_SOLVE_TOKENS})


async def solve(service: Service, request: Request) -> Response:
    """Answer with the weights of one layer and head.

    Raises:
        ApiError: The request is wrong or refused.
        ClientGone: The client closed the connection.
    """
    service.check_ready()
    async with preparing(service, request, "solve") as (prepared, cancellation):
        assert prepared.place is not None
        (ids,) = prepared.job.prompts
        work = service.backend.solve(list(ids), *prepared.place)
        return JSONResponse(_checked(await cancellation.during(work)))


def _checked(found: Any) -> Any:
    """Return what a backend found.

    Raises:
        ApiError: It refused.
    """
    if not isinstance(found, Refusal):
        return found
    if found.kind == "queue_full":
        raise queue_full(found.retry_after)
    if found.kind == "unsupported":
        raise ApiError(501, found.message, "not_supported")
    if found.kind == "invalid":
        raise invalid(found.message, found.param, "invalid_value" if found.param else None)
    raise unavailable(found.message, "engine_down")
