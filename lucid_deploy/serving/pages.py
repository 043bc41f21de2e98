"""The pages for browsers: files of this package, with headers that let them load nothing from anywhere else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import lru_cache
from importlib.resources import files
from typing import Any

from starlette.responses import Response

from lucid_deploy.serving.openapi import document

# Path → file in web/ and its type.
PAGES = {
    "/": ("index.html", "text/html"),
    "/ui/app.js": ("app.js", "text/javascript"),
    "/ui/icon.svg": ("icon.svg", "image/svg+xml"),
    "/docs": ("docs.html", "text/html"),
    "/ui/style.css": ("style.css", "text/css"),
}
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",
}


def page(path: str) -> Callable[[], Awaitable[Response]]:
    """Return what answers requests for one of :data:`PAGES`."""
    name, kind = PAGES[path]

    async def serve() -> Response:
        return Response(_content(name), media_type=kind, headers=HEADERS)

    return serve


@lru_cache
def _content(name: str) -> str:
    text = (files("lucid_deploy.serving") / "web" / name).read_text(encoding="utf-8")
    return _render(text) if name == "docs.html" else text


def _render(source: str) -> str:
    """Fill in the template of ``/docs`` from the OpenAPI document."""
    from jinja2 import Environment

    described = document()
    paths = [
        {"path": path, "method": method.upper(), "summary": facts["summary"], "body": _body_name(facts)}
        for path, methods in described["paths"].items()
        for method, facts in methods.items()
    ]
    bodies = {
        name: _fields(schema)
        for name, schema in described["components"]["schemas"].items()
        if name != "Error" and schema.get("properties")
    }
    return Environment(autoescape=True, trim_blocks=True).from_string(source).render(paths=paths, bodies=bodies)


def _body_name(facts: dict[str, Any]) -> str | None:
    if "requestBody" not in facts:
        return None
    return str(facts["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2])


def _fields(schema: dict[str, Any]) -> list[dict[str, Any]]:
    required = schema.get("required", [])
    return [
        {"name": name, "kind": _kind(form), "required": name in required, "text": _description(form)}
        for name, form in schema["properties"].items()
    ]


def _kind(form: dict[str, Any]) -> str:
    """Say in a few words what a value may be."""
    if "$ref" in form:
        return str(form["$ref"].rpartition("/")[2])
    if "anyOf" in form:
        return " or ".join(dict.fromkeys(_kind(part) for part in form["anyOf"] if part.get("type") != "null"))
    if "enum" in form:
        return " or ".join(f'"{value}"' for value in form["enum"] if value is not None)
    if form.get("type") == "array":
        return f"list of {_kind(form.get('items', {}))}"
    return str(form.get("type", "anything"))


def _description(form: dict[str, Any]) -> str:
    own = form.get("description", "")
    return str(own or next((part["description"] for part in form.get("anyOf", []) if "description" in part), ""))
