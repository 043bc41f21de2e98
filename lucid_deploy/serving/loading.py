"""From the options of ``lucid-deploy serve`` to the application's state, and its log."""

from __future__ import annotations

import hashlib
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lucid_deploy.artifact import MANIFEST
from lucid_deploy.errors import LucidError
from lucid_deploy.serving.front import ApiOptions, Service
from lucid_deploy.serving.jobs import EngineOptions, LocalBackend, open_checked
from lucid_deploy.serving.readers import ReaderPool, ReaderSetup
from lucid_deploy.serving.requests import Limits
from lucid_deploy.serving.tool_formats import tool_format_named
from lucid_deploy.serving.tracing import open_tracing

if TYPE_CHECKING:
    from lucid_deploy.serving.ray_cluster import RayBackend

LIBRARIES = ("uvicorn", "asyncio", "opentelemetry")  # only their warnings are logged


def reader_setup(engine: EngineOptions, api: ApiOptions) -> ReaderSetup:
    """Return what the readers of a server read for; refuse limits that are larger than the model's context."""
    artifact = open_checked(engine.directory)
    context = artifact.config.max_position_embeddings
    for option, tokens in (("--max-prompt-tokens", api.max_prompt_tokens), ("--max-new-tokens", api.max_new_tokens)):
        if tokens is not None and tokens > context:
            raise LucidError(
                f"{option} {tokens} is more than the context of {artifact.directory}, {context} tokens for prompt and "
                "answer together. Give less, or leave it out."
            )
    if api.tool_format is not None:
        tool_format_named(api.tool_format)
    limits = Limits(
        context=context,
        vocabulary=artifact.config.vocab_size,
        prompt_tokens=api.max_prompt_tokens or context,
        new_tokens=api.max_new_tokens or context,
        choices=api.max_choices or max(1, engine.rows - 1),
        body_bytes=api.max_body_bytes,
        seconds=api.seconds,
    )
    directory = artifact.directory.resolve()
    model, adapters = api.model or directory.name, tuple(each.name for each in artifact.adapters())
    if model in adapters:
        raise LucidError(
            f"The model and an adapter of it are both called {model}: give the model another --served-model-name."
        )
    return ReaderSetup(str(directory), model, limits, api.tool_format, adapters)


def make_service(engine: EngineOptions, api: ApiOptions, backend: LocalBackend | RayBackend) -> Service:
    """Return the application's state over a backend; its readers are not started. Call it in an event loop."""
    setup = reader_setup(engine, api)
    manifest = Path(setup.directory) / MANIFEST
    fingerprint = "lucid_" + hashlib.sha256(manifest.read_bytes()).hexdigest()[:10]
    tracing = None if api.otlp_endpoint is None else open_tracing(api.otlp_endpoint)
    readers = ReaderPool(setup, api.readers)
    return Service(api, setup, backend, readers, tracing, fingerprint, int(manifest.stat().st_mtime))


def set_up_logging(level: str) -> None:
    """Log to stderr, one line an event, without anything that a request contains beyond its path."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in ("lucid_deploy.serving", *LIBRARIES):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel("WARNING" if name in LIBRARIES else level.upper())
        logger.propagate = False
