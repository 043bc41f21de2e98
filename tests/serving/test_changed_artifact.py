"""An artifact that is damaged before it is served, or changed while it is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import httpx
from click.testing import CliRunner

from lucid_deploy.cli import main
from tests.patience import PATIENCE
from tests.serving.serving_tools import MODEL, PROMPT, Server, Start


def copy_of(artifacts: dict[str, Path], target: Path) -> Path:
    return Path(shutil.copytree(artifacts["growing"], target))


def damage(artifact: Path) -> None:
    """Change weights in place, their size unchanged."""
    path = artifact / "weights.bin"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(64))
    os.utime(path)


def ask(server: Server) -> httpx.Response:
    body = {"model": MODEL, "prompt": PROMPT, "temperature": 0}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=PATIENCE)


def test_damaged_weights_are_not_served(start: Start, artifacts: dict[str, Path], tmp_path: Path) -> None:
    artifact = copy_of(artifacts, tmp_path / "damaged")
    damage(artifact)
    refused = CliRunner().invoke(main, ["serve", str(artifact), "--port", "0"])
    assert refused.exit_code == 1 and "sha256 of weights.bin differs from the manifest" in refused.stderr
    unchecked = start(artifact, "--no-check")
    assert ask(unchecked).status_code in (200, 500)


def test_weights_that_change_end_the_engine_and_clients_get_the_reason(
    start: Start, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    artifact = copy_of(artifacts, tmp_path / "changed")
    server = start(artifact)
    assert ask(server).json()["choices"][0]["text"] == "blue cup"
    damage(artifact)
    while (answer := ask(server)).status_code == 200:  # the engine checks its files once a second
        pass
    assert answer.status_code == 503
    assert "weights.bin changed while it was in use" in answer.json()["error"]["message"]
    assert httpx.get(f"{server.url}/healthz").json()["error"]["code"] == "engine_down"
    assert ask(server).status_code == 503
    assert server.stop() == 0
    assert any("CRITICAL" in line and "weights.bin changed" in line for line in server.errors)
    assert not any("Traceback" in line for line in server.errors)
