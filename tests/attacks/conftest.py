"""Servers under attack."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.attacks.attack_tools import ATTACKER, KEY
from tests.patience import PATIENCE
from tests.serving.serving_tools import MODEL, ONE_THREAD, Server, artifacts, start  # noqa: F401

CONFIGURATION = Path(__file__).parents[2] / "examples" / "nginx" / "nginx.conf"


@pytest.fixture(scope="session")
def open_server(artifacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:  # noqa: F811
    """A server without API keys."""
    with attacked(artifacts["growing"], tmp_path_factory) as running:
        yield running


@pytest.fixture(scope="session")
def keyed_server(artifacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:  # noqa: F811
    """A server with API keys."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"{KEY}\n{ATTACKER}\n")
    file.chmod(0o600)
    with attacked(artifacts["growing"], tmp_path_factory, "--api-key-file", str(file)) as running:
        yield running


@pytest.fixture(params=["open", "keyed"])
def target(request: pytest.FixtureRequest) -> Server:
    """Both servers, one after the other: one reads a body that the other refuses for its missing key."""
    server: Server = request.getfixturevalue(f"{request.param}_server")
    return server


@contextmanager
def attacked(artifact: Path, folders: pytest.TempPathFactory, *options: str) -> Iterator[Server]:
    """Start a server; no attack may put a traceback into its log.

    With LUCID_ATTACKS_NGINX the attacks go through nginx with the configuration of the examples.
    """
    words = ["serve", str(artifact), "--port", "0", "--served-model-name", MODEL, *ONE_THREAD, *options]
    running = Server(["-m", "lucid_deploy.cli", *words, "--idle-timeout", "2"])
    if os.environ.get("LUCID_ATTACKS_NGINX"):
        with behind_nginx(running, folders.mktemp("nginx")):
            yield running
    else:
        yield running
    assert running.stop() == 0
    assert "Traceback" not in (log := "".join(running.errors)), log[log.index("Traceback") - 500 :][:5000]


@contextmanager
def behind_nginx(server: Server, folder: Path) -> Iterator[None]:
    """Put nginx in front of a server; meanwhile, ``server.url`` is the address of nginx."""
    port = 18000 + server.port % 1000
    text = CONFIGURATION.read_text().replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
    text, count = re.subn(r"listen 8080", f"listen {port}", text)
    assert count == 1
    (folder / "nginx.conf").write_text(text)
    user = "user root; " if os.geteuid() == 0 else ""  # the folder is for this user only
    proxy = subprocess.Popen(["nginx", "-p", folder, "-c", folder / "nginx.conf", "-g", f"{user}daemon off;"])
    end = time.monotonic() + PATIENCE
    while not (folder / "nginx.pid").exists():
        assert time.monotonic() < end and proxy.poll() is None
        time.sleep(0.05)
    direct, server.url = server.url, f"http://127.0.0.1:{port}"
    try:
        yield
    finally:
        server.url = direct
        proxy.terminate()
        proxy.wait(PATIENCE)
