"""Errors of the HTTP API, in the JSON shape that OpenAI's clients read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class ApiError(Exception):
    """An error for the client: HTTP status, message, machine-readable ``code``, and ``param``, the invalid field."""

    status: int
    message: str
    code: str = "invalid_request"
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def queue_full(retry_after: int = 1) -> ApiError:
    """Return the error for a full queue, status 429; the client may retry after ``retry_after`` seconds."""
    message = f"The queue is full. Try again in {retry_after} s."
    return ApiError(429, message, "queue_full", headers={"Retry-After": str(retry_after)})


def unavailable(message: str, code: str) -> ApiError:
    """Return an error with status 503 for a temporary failure; it tells the client to retry after 5 seconds."""
    return ApiError(503, message, code, headers={"Retry-After": "5"})
