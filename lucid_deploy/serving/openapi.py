"""The OpenAPI document of the server: paths, and the schemas of the bodies as the structs have them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec

from lucid_deploy.serving.bodies import ChatRequest, CompletionRequest, ResponseRequest, SolveRequest
from lucid_deploy.version import __version__

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"enum": ["invalid_request_error", "rate_limit_error", "server_error"]},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


@lru_cache(maxsize=1)
def document() -> dict[str, Any]:
    """Return the document, in OpenAPI 3.1."""
    bodies, schemas = msgspec.json.schema_components(
        (CompletionRequest, ChatRequest, ResponseRequest, SolveRequest), ref_template="#/components/schemas/{name}"
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "lucid-deploy", "version": __version__},
        "paths": {
            "/v1/completions": {"post": _post("Continue a prompt.", bodies[0])},
            "/v1/chat/completions": {"post": _post("Answer a chat.", bodies[1])},
            "/v1/responses": {"post": _post("Answer a text or a chat, by the Responses API.", bodies[2])},
            "/v1/lucid/solve": {
                "get": _get("The layers that solve a system. Off with --no-ui."),
                "post": _post("What a layer solves over a short text. Off with --no-ui.", bodies[3]),
            },
            "/v1/models": {"get": _get("The model that is served.")},
            "/v1/models/{name}": {"get": {**_get("One model."), "parameters": [_NAME]}},
            "/healthz": {"get": {**_get("Whether requests are taken."), "security": []}},
            "/health": {"get": {**_get("The same as /healthz."), "security": []}},
            "/version": {"get": _get("The version of lucid-deploy.")},
            "/metrics": {"get": _get("Metrics, in Prometheus' text format.", "text/plain")},
            "/openapi.json": {"get": _get("This document.")},
        },
        "components": {
            "schemas": {**schemas, "Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
_ERROR = {
    "description": "An error.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}


def _post(summary: str, body: dict[str, Any]) -> dict[str, Any]:
    answers = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {"schema": {"type": "string"}}}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {
            "200": {"description": "The answer, whole or as a stream.", "content": answers},
            "default": _ERROR,
        },
    }


def _get(summary: str, kind: str = "application/json") -> dict[str, Any]:
    schema = {"type": "object"} if kind == "application/json" else {"type": "string"}
    answer = {"description": summary, "content": {kind: {"schema": schema}}}
    return {"summary": summary, "responses": {"200": answer, "default": _ERROR}}
