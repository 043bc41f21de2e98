"""Servers under attack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.attack_tools import KEY
from tests.serving.serving_tools import MODEL, ONE_THREAD, Server, artifacts, start  # noqa: F401


@pytest.fixture(scope="session", params=["open", "keys"])
def target(
    request: pytest.FixtureRequest,
    artifacts: dict[str, Path],  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """A server without API keys and one with them; no attack may put a traceback into its log."""
    words = ["serve", str(artifacts["growing"]), "--port", "0", "--served-model-name", MODEL, *ONE_THREAD]
    if request.param == "keys":
        file = tmp_path_factory.mktemp("keys") / "keys"
        file.write_text(KEY)
        file.chmod(0o600)
        words += ["--api-key-file", str(file)]
    running = Server(["-m", "lucid_deploy.cli", *words, "--idle-timeout", "2"])
    yield running
    assert running.stop() == 0
    assert "Traceback" not in (log := "".join(running.errors)), log[log.index("Traceback") - 500 :][:5000]
