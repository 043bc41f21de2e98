"""Errors of the HTTP API, in the JSON shape that OpenAI's clients read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lucid_deploy.json_fields import shown
from lucid_deploy.serving.engine import Refusal


@dataclass(eq=False)
class ApiError(Exception):
    """An error that is sent to the client; ``code`` is a word for programs, such as ``model_not_found``."""

    status: int
    message: str
    code: str = "invalid_request"
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, Any]:
        """Return the JSON body."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class ClientGone(Exception):
    """The client closed the connection before its answer was complete."""


def no_such_model(name: str, *served: str) -> ApiError:
    """Return the 404 for another model's name."""
    message = f"The model {shown(name)} does not exist here; this server has {', '.join(map(shown, served))}."
    return ApiError(404, message, "model_not_found", "model")


def queue_full(retry_after: int) -> ApiError:
    """Return the 429 for a full queue."""
    message = f"The queue is full. Try again in {retry_after} s."
    return ApiError(429, message, "queue_full", headers={"Retry-After": str(retry_after)})


def unavailable(message: str, code: str) -> ApiError:
    """Return the 503 of a server that is loading, stopping or broken."""
    return ApiError(503, message, code, headers={"Retry-After": "5"})


def refusal_error(refusal: Refusal) -> ApiError:
    """Return the error that tells a client of a refusal."""
    if refusal.kind == "queue_full":
        return queue_full(refusal.retry_after)
    if refusal.kind == "unsupported":
        return ApiError(501, refusal.message, "not_supported")
    if refusal.kind == "invalid":
        return ApiError(400, refusal.message, "invalid_value" if refusal.param else "invalid_request", refusal.param)
    return unavailable(refusal.message, "engine_down")
