"""The pages for browsers."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment
from starlette.responses import Response

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
    "Cache-Control": "no-cache",
}


def page(path: str, document: Callable[[], dict[str, Any]]) -> Response:
    """Return one of :data:`PAGES`; ``document`` gives what ``/docs`` shows."""
    name, kind = PAGES[path]
    return Response(_text(name, document), media_type=kind, headers=HEADERS)


@lru_cache
def _text(name: str, document: Callable[[], dict[str, Any]]) -> str:
    text = (files("lucid_deploy.serving") / "web" / name).read_text(encoding="utf-8")
    if name != "docs.html":
        return text
    return Environment(autoescape=True, trim_blocks=True).from_string(text).render(document())
