"""A real browser, driven over its DevTools protocol, and a server of static files."""

from __future__ import annotations

import functools
import http.server
import itertools
import json
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
WEBGPU = ("--enable-unsafe-webgpu", "--enable-features=Vulkan", "--use-webgpu-adapter=swiftshader")  # without a GPU


def find_browser() -> str | None:
    """Return the path of a Chromium, None without one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder's files as they are; yield the URL."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


class Page:
    """A page of a browser."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.numbers = socket, itertools.count(1)

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol and return its result; events are passed over."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (answer := json.loads(self.socket.recv())).get("id") != number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def evaluate(self, code: str) -> Any:
        """Return the value of an expression; of a promise what it is fulfilled with."""
        found = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")


@contextmanager
def browsing(browser: str, profile: Path, gpu: tuple[str, ...] = ("--disable-gpu",)) -> Iterator[Page]:
    """Start a browser without a window, with a profile of its own; yield its page."""
    from websockets.sync.client import connect

    switches = ("--headless=new", "--no-sandbox", *gpu, "--disable-dev-shm-usage", "--no-first-run")
    command = [browser, *switches, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
    with open(profile.with_suffix(".log"), "wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            port = _port(process, profile)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                target = next(each for each in json.load(answer) if each["type"] == "page")
            with connect(target["webSocketDebuggerUrl"], max_size=None, open_timeout=60) as socket:
                yield Page(socket)
        finally:
            process.terminate()


def _port(process: subprocess.Popen[bytes], profile: Path) -> int:
    """Return the port of the protocol, which the browser writes into its profile when it listens."""
    path = profile / "DevToolsActivePort"
    while not path.is_file() or "\n" not in path.read_text():
        assert process.poll() is None, profile.with_suffix(".log").read_text()
        time.sleep(0.1)
    return int(path.read_text().splitlines()[0])
