"""The pages for browsers, and the OpenAPI document, which has the schemas of bodies as the structs have them."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Any

import msgspec
from starlette.responses import Response

from lucid_deploy.serving.fields import ChatRequest, CompletionRequest, ResponseRequest, SolveRequest
from lucid_deploy.version import __version__

# Path → file in web/ and its type.
PAGES = {
    "/": ("index.html", "text/html"),
    "/ui/app.js": ("app.js", "text/javascript"),
    "/ui/icon.svg": ("icon.svg", "image/svg+xml"),
    "/docs": ("docs.html", "text/html"),
    "/ui/style.css": ("style.css", "text/css"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",
}
PATHS = {
    "/v1/completions": {"post": "Continue a prompt."},
    "/v1/chat/completions": {"post": "Answer a chat."},
    "/v1/responses": {"post": "Answer a text or a chat, by the Responses API."},
    "/v1/lucid/solve": {
        "get": "The layers that solve a system. Off with --no-ui.",
        "post": "What a layer solves over a short text. Off with --no-ui.",
    },
    "/v1/models": {"get": "The model that is served."},
    "/v1/models/{name}": {"get": "One model."},
    "/healthz": {"get": "Whether requests are taken. Needs no key."},
    "/health": {"get": "The same as /healthz."},
    "/version": {"get": "The version of lucid-deploy."},
    "/metrics": {"get": "Metrics, in Prometheus' text format."},
    "/openapi.json": {"get": "This document."},
}
BODIES = (CompletionRequest, ChatRequest, ResponseRequest, SolveRequest)  # of the POSTs, in that order


def page(path: str) -> Response:
    """Return one of :data:`PAGES`."""
    name, kind = PAGES[path]
    return Response(_content(name), media_type=kind, headers=HEADERS)


@lru_cache
def _content(name: str) -> str:
    text = (files("lucid_deploy.serving") / "web" / name).read_text(encoding="utf-8")
    if name != "docs.html":
        return text
    from jinja2 import Environment

    return Environment(autoescape=True, trim_blocks=True).from_string(text).render(document())


@lru_cache
def document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    references, schemas = msgspec.json.schema_components(BODIES, ref_template="#/components/schemas/{name}")
    names: dict[str, Any] = {name: {"type": kind} for name, kind in (("message", "string"), ("type", "string"))}
    names |= {name: {"type": ["string", "null"]} for name in ("param", "code")}
    error = {"type": "object", "required": ["error"], "properties": {"error": {"type": "object", "properties": names}}}
    operations = {path: {method: _operation(text) for method, text in of.items()} for path, of in PATHS.items()}
    posts = [methods["post"] for methods in operations.values() if "post" in methods]
    for operation, schema in zip(posts, references, strict=True):
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    operations["/v1/models/{name}"]["get"]["parameters"] = [
        {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    ]
    return {
        "openapi": "3.1.0",
        "info": {"title": "lucid-deploy", "version": __version__},
        "paths": operations,
        "components": {
            "schemas": {**schemas, "Error": error},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _operation(summary: str) -> dict[str, Any]:
    error = {"schema": {"$ref": "#/components/schemas/Error"}}
    errors = {"description": "An error.", "content": {"application/json": error}}
    return {"summary": summary, "responses": {"200": {"description": "The answer."}, "default": errors}}
