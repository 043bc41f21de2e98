"""Servers in separate processes, on the bundled model with a chat template, and the answers expected from them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lucid_deploy
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.generation.generate import Generation
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.generation.text_stream import AnswerText
from lucid_deploy.runtimes import Session, open_session
from tests.once_per_run import made_once, run_folder
from tests.patience import PATIENCE

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('No such role: ' + message.role) }}"
    "{% endif %}{{ message.content }} {% endfor %}"
)
PROMPT = "fox has red lamp, owl has blue cup, bear has green key. owl has"
MODEL = "demo"
ONE_THREAD = ("--threads", "1")  # a second thread would only spin while it waits, see tests/one_core.py
HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Artifacts of the bundled model: with a growing cache, with a static cache, and without a chat template."""
    root = made_once(run_folder(tmp_path_factory, "served"), "artifacts", export_served)
    return {name: root / name for name in ("growing", "static", "plain")}


def export_served(root: Path) -> None:
    """Export the artifacts of :func:`artifacts` into a folder."""
    plain = Path(lucid_deploy.__file__).parent / "demo"
    chatty = Path(shutil.copytree(plain, root / "checkpoint"))
    settings = json.loads((chatty / "tokenizer_config.json").read_text())
    (chatty / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
    export(chatty, root / "growing", ExportOptions(cache="growing"))
    export(chatty, root / "static", ExportOptions(cache="static"))
    shutil.copytree(root / "growing", root / "plain")
    replace_file(root / "plain", "tokenizer_config.json", (plain / "tokenizer_config.json").read_bytes())


def replace_file(artifact: Path, name: str, data: bytes) -> None:
    """Replace a file of an artifact, and its size and hash in the manifest."""
    (artifact / name).write_bytes(data)
    manifest = json.loads((artifact / "lucid.json").read_text())
    manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (artifact / "lucid.json").write_text(json.dumps(manifest))


class Reference:
    """Generates the texts of ``lucid-deploy run``, to compare a server's answers with."""

    def __init__(self, directory: Path) -> None:
        self.session: Session[Any] = open_session(directory)
        self.tokenizer = TextTokenizer(directory)

    def text(self, prompt: str | list[int], count: int, eos: bool = True, **sampling: Any) -> str:
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        answer = AnswerText(self.tokenizer)
        generation = Generation(self.session, ids, count, Sampling(**sampling), stop_at_eos=eos)
        return "".join(answer.push(token) for token in generation) + answer.finish()


@pytest.fixture(scope="session")
def reference(artifacts: dict[str, Path]) -> Reference:
    return Reference(artifacts["growing"])


def _hear_hangups() -> None:
    """Restore the default action of SIGHUP, which children ignore if the tests run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Server:
    """A running server; ``url`` ends without a slash, ``slow`` is the file that makes it slow while it exists."""

    def __init__(self, arguments: list[str], ready: bool = True, slow: Path | None = None) -> None:
        self.slow = slow
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            preexec_fn=_hear_hangups,
        )
        self.errors: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = ""
        if ready:
            assert self.process.stdout is not None
            line = self.process.stdout.readline()
            assert line.startswith("Serving on http://"), "".join(self.errors)
            self.url = line.split()[-1]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors.append(line)

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def hurry(self) -> None:
        """Let the server run at full speed from now on."""
        assert self.slow is not None
        self.slow.unlink()

    def stop(self, number: int = signal.SIGTERM, timeout: float = PATIENCE) -> int:
        """Send a signal; return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout)
        finally:
            if self.process.poll() is None:
                self.process.kill()
            self._reader.join(PATIENCE)


Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a server: ``start(directory, "--rows", 2, slow=0.25)``.

    ``slow`` is the least number of seconds that a step takes until :meth:`Server.hurry`, so that a test can act
    before an answer ends, on a slow machine too.
    """
    started: list[Server] = []

    def run(directory: Path, *options: Any, slow: float | None = None, ready: bool = True) -> Server:
        file = None if slow is None else tmp_path / f"slow{len(started)}"
        program = ["-m", "lucid_deploy.cli"]
        if file is not None:
            file.touch()
            program = [str(HERE / "slow_server.py"), str(slow), str(file)]
        words = ["serve", str(directory), "--port", "0", "--served-model-name", MODEL, *ONE_THREAD, *map(str, options)]
        started.append(Server([*program, *words], ready, file))
        return started[-1]

    yield run
    for server in started:
        server.stop(signal.SIGKILL)


@pytest.fixture(scope="session")
def server(artifacts: dict[str, Path]) -> Iterator[Server]:
    """A server without keys."""
    words = ["serve", str(artifacts["static"]), "--port", "0", "--served-model-name", MODEL, *ONE_THREAD]
    running = Server(["-m", "lucid_deploy.cli", *words])
    yield running
    assert running.stop() == 0
