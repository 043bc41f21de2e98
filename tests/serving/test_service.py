"""Whether requests are taken."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from lucid_deploy.serving.errors import ApiError
from lucid_deploy.serving.front import Service
from tests.serving.stand_ins import ScriptedBackend, service


def code_of(change: Any, folder: Path) -> str | None:
    async def run() -> str | None:
        made = service(folder, ScriptedBackend())
        change(made)
        try:
            made.check_ready()
        except ApiError as error:
            assert error.status == 503
            return error.code
        return None

    return asyncio.run(run())


def set_state(state: str) -> Any:
    def change(made: Service) -> None:
        made.backend.state = state  # type: ignore[misc]

    return change


def test_states(tmp_path: Path) -> None:
    assert code_of(lambda _: None, tmp_path) is None
    assert code_of(set_state("loading"), tmp_path) == "loading"
    assert code_of(set_state("dead"), tmp_path) == "engine_down"
    assert code_of(lambda made: setattr(made, "draining", True), tmp_path) == "shutting_down"


def test_bodies_share_the_memory_of_sixteen(tmp_path: Path) -> None:
    async def run() -> None:
        made = service(tmp_path, ScriptedBackend())
        assert made.most_body_memory == 16 * made.settings.limits.body_bytes

    asyncio.run(run())
