"""A service without other processes: bodies are read in the test's own, and a script stands in for the engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, cast

import httpx

from lucid_deploy.artifact.chat import load_chat_templates
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.generation.text_stream import TextPiece
from lucid_deploy.serving.app import App
from lucid_deploy.serving.fields import Kind
from lucid_deploy.serving.front import ApiOptions, Service
from lucid_deploy.serving.jobs import Job
from lucid_deploy.serving.requests import ReaderSetup, RequestReader
from lucid_deploy.serving.security import ApiKeys
from tests.serving.reader_tools import write_setup


class ScriptedBackend:
    """Gives the same events to every job.

    Attributes:
        jobs: The jobs that were submitted.
        closed: How many of their generators have ended or were closed.
    """

    def __init__(self, *script: list[TextPiece] | Exception, state: str = "ready") -> None:
        self.script, self.state = script, state
        self.jobs: list[Job] = []
        self.closed = 0

    def gauges(self) -> dict[str, float]:
        return {"rows": 4.0, "active_rows": 1.0}

    async def generate(self, job: Job) -> AsyncGenerator[list[TextPiece], None]:
        self.jobs.append(job)
        try:
            for events in self.script:
                if isinstance(events, Exception):
                    raise events
                yield events
        finally:
            self.closed += 1


class ReaderHere:
    """Reads bodies in this process."""

    has_chat_template = True

    def __init__(self, setup: ReaderSetup) -> None:
        folder = Path(setup.directory)
        self._reader = RequestReader(setup, TextTokenizer(folder), load_chat_templates(folder))

    async def read(self, body: bytes, kind: Kind, client: str) -> Job:
        return self._reader.read(kind, body)


def service(folder: Path, backend: ScriptedBackend, keys: ApiKeys | None = None, **more: Any) -> Service:
    """Return a service; call it in an event loop. ``more`` are fields of ApiOptions."""
    setup = write_setup(folder)
    made = Service(ApiOptions(keys=keys or ApiKeys(), **more), setup, cast(Any, backend))
    made.readers = cast(Any, ReaderHere(setup))
    return made


def client(of: Service) -> httpx.AsyncClient:
    """Return a client of the application, without a network."""
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(App(of), raise_app_exceptions=False), base_url="http://localhost"
    )
