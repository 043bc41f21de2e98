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

from tests.attacks.attack_tools import KEY
from tests.patience import PATIENCE
from tests.serving.serving_tools import MODEL, ONE_THREAD, Server, artifacts, start  # noqa: F401

CONFIGURATION = Path(__file__).parents[2] / "examples" / "nginx" / "nginx.conf"


@pytest.fixture(scope="session", params=["open", "keys"])
def target(
    request: pytest.FixtureRequest,
    artifacts: dict[str, Path],  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """A server without API keys and one with them; no attack may put a traceback into its log.

    With LUCID_ATTACKS_NGINX the attacks go through nginx with the configuration of the examples.
    """
    words = ["serve", str(artifacts["growing"]), "--port", "0", "--served-model-name", MODEL, *ONE_THREAD]
    if request.param == "keys":
        file = tmp_path_factory.mktemp("keys") / "keys"
        file.write_text(KEY)
        file.chmod(0o600)
        words += ["--api-key-file", str(file)]
    running = Server(["-m", "lucid_deploy.cli", *words, "--idle-timeout", "2"])
    if os.environ.get("LUCID_ATTACKS_NGINX"):
        with behind_nginx(running, tmp_path_factory.mktemp("nginx")):
            yield running
    else:
        yield running
    assert running.stop() == 0
    assert "Traceback" not in (log := "".join(running.errors)), log[log.index("Traceback") - 500 :][:5000]


@contextmanager
def behind_nginx(server: Server, folder: Path) -> Iterator[None]:
    """Put nginx in front of a server, in the place of which it gets all requests."""
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
