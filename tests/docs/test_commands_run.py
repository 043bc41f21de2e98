"""Every command block of the pages runs as it stands, in the order of its page, in a folder of its own.

A block that cannot run here stands below a comment ``<!-- not run: reason -->``. ``pip install`` and ``make`` are not
run, but what they name must exist. Blocks marked ``text`` are output. Pages that export several models or train one run
in ``make test-compat``; ``make test`` only parses their commands.
"""

from __future__ import annotations

import contextlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact
from lucid_deploy.cli import main
from lucid_deploy.model.checkpoint import resolve
from tests.patience import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^(?:<!-- not run: (?P<reason>.+?) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
SHELL, PYTHON = ("", "bash", "sh"), "python"
SHELL_WORDS = re.compile(r"[|<>&;$`*?~]|\blucid-deploy (plugin|build)\b")  # compilers run in their own process
NO_SHELL_WORDS = re.compile(r"""'[^']*'|"[^"$`\\]*"|(?:^|\s)\#.*""")  # quoted text and comments
HERE = re.compile(r"^cat > (?P<name>\S+) <<'END'\n(?P<text>.*?)^END\n", re.M | re.S)
SETTING = re.compile(r"(\w+)=(\S*) ")
# Slow lines that occur on several pages, and write nothing into the page's folder that later lines need.
ONCE = {
    "lucid-deploy verify ./artifact",
    "lucid-deploy plugin build --target onnxruntime",
    "python examples/export_own_checkpoint.py --output own-model",
}


@dataclass(frozen=True)
class Block:
    """One fenced block: its kind, its text, and why it cannot run here, if it cannot."""

    kind: str
    text: str
    reason: str | None


def blocks(page: Path) -> list[Block]:
    found = [Block(m["kind"], m["text"], m["reason"]) for m in BLOCK.finditer(page.read_text(encoding="utf-8"))]
    return [block for block in found if block.kind in (*SHELL, PYTHON)]


def commands(text: str) -> list[str]:
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]


RUNNABLE = [page for page in PAGES if any(block.reason is None for block in blocks(page))]
LONG = {"command-line", "conformance", "evaluation", "examples", "export", "models", "performance", "quantization"}
LONG |= {"README", "index", "serving", "verification"}


@pytest.fixture(scope="session")
def demo_artifact(demo: Callable[..., Artifact]) -> Artifact:
    return demo(logits="last")


class Reader:
    """Does what a page says. Servers stay up until its end."""

    def __init__(self, folder: Path, programs: Path, cache: Path, done: set[str]) -> None:
        self.folder, self.done = folder, done
        self.environment = {
            **os.environ,
            "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(cache),  # libraries that pages build are not for other tests
        }
        self.servers: list[subprocess.Popen[str]] = []

    def read(self, block: Block) -> None:
        if block.kind == PYTHON:
            (self.folder / "block.py").write_text(block.text)
            with self.inside():
                runpy.run_path("block.py", run_name="__main__")
        else:
            for written in HERE.finditer(block.text):
                (self.folder / written["name"]).write_text(written["text"])
            for line in commands(HERE.sub("", block.text)):
                self.do(line)

    def do(self, line: str) -> None:
        if line in self.done & ONCE:
            return
        self.done.add(line)
        if line.startswith("pip install"):
            check_extras(line)
        elif line.startswith("make "):
            assert f"\n{line.split()[1]}:" in (ROOT / "Makefile").read_text(), line
        elif line.startswith("lucid-deploy serve"):
            self.serve(line)
        elif is_one_command(line):
            self.call(line)
        else:
            self.run(["bash", "-euo", "pipefail", "-c", line], line)

    def call(self, line: str) -> None:
        with self.inside() as patch:
            while setting := SETTING.match(line):
                patch.setenv(*setting.groups())
                line = line[setting.end() :]
            result = CliRunner().invoke(main, shlex.split(line, comments=True)[1:])
        assert result.exit_code == 0, f"{line}\n{result.output[-3000:]}\n{result.exception!r}"

    @contextlib.contextmanager
    def inside(self) -> Iterator[pytest.MonkeyPatch]:
        """Run in this process, in the reader's folder: a new process would import everything and trace models again."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            for name in ("PATH", "XDG_CACHE_HOME"):
                patch.setenv(name, self.environment[name])
            yield patch

    def run(self, command: list[str], shown: str) -> None:
        result = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert result.returncode == 0, f"{shown}\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}"

    def serve(self, line: str) -> None:
        """Start a server, and come back when it is ready."""
        port = (re.findall(r"--port (\d+)", line) or ["8000"])[0]
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "lucid-deploy"), *line.split()[1:]],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.servers.append(process)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5).close()
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                assert process.poll() is None, f"{line}\n{process.communicate()[1]}"
                time.sleep(0.1)
        raise AssertionError(f"{line} is not ready after {PATIENCE:.0f} s")

    def leave(self) -> None:
        for process in self.servers:
            process.terminate()
        for process in self.servers:
            process.communicate(timeout=PATIENCE)


def is_one_command(line: str) -> bool:
    """Say whether a line is one command of ours, with nothing that a shell does."""
    bare = NO_SHELL_WORDS.sub("", line)
    while setting := SETTING.match(bare):
        bare = bare[setting.end() :]
    return bare.startswith("lucid-deploy ") and not SHELL_WORDS.search(bare)


@pytest.fixture(scope="module")
def done() -> set[str]:
    return set()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def reader(tmp_path: Path, preloaded: Path, cache: Path, done: set[str]) -> Iterator[Reader]:
    made = Reader(tmp_path, preloaded, cache, done)
    yield made
    made.leave()


def check_extras(line: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for named in re.findall(r"(?:lucid-deploy|\.|whl)\[([\w,]+)\]", line):
        assert set(named.split(",")) <= set(extras), line


def marked(page: Path) -> Any:
    return pytest.param(page, id=page.name, marks=[pytest.mark.compat] if page.stem in LONG else [])


@pytest.mark.parametrize("page", [*map(marked, RUNNABLE)])
def test_the_commands_of_a_page(page: Path, reader: Reader, demo_artifact: Artifact) -> None:
    folder, text = reader.folder, page.read_text(encoding="utf-8")
    shutil.copytree(resolve("demo"), folder / "path" / "to" / "checkpoint")
    (folder / "examples").symlink_to(ROOT / "examples")
    if not re.search(r"(--output|-o) (\./)?artifact\b", text):  # pages that go on from the quickstart's artifact
        shutil.copytree(demo_artifact.directory, folder / "artifact")
    for block in blocks(page):
        if block.reason is None:
            reader.read(block)


def parse(command: click.Command, words: list[str], parent: click.Context | None = None) -> None:
    """Parse a command's words, and those of its subcommand, and run nothing. Files that are missing do not matter."""
    try:
        context = command.make_context(command.name, words, parent)
    except click.BadParameter as error:
        assert "does not exist" in error.message, error.message
    except click.exceptions.Exit:
        return  # --help
    else:
        if isinstance(command, click.Group):
            _, chosen, rest = command.resolve_command(context, [*context._protected_args, *context.args])
            assert chosen is not None
            parse(chosen, rest, context)


def test_commands_of_long_pages_are_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pages = [page for page in RUNNABLE if page.stem in LONG]
    assert {page.stem for page in pages} == LONG
    for block in (block for page in pages for block in blocks(page) if block.reason is None and block.kind in SHELL):
        for written in HERE.finditer(block.text):
            Path(written["name"]).write_text(written["text"])
        for line in filter(is_one_command, commands(HERE.sub("", block.text))):
            while setting := SETTING.match(line):
                line = line[setting.end() :]
            parse(main, shlex.split(line, comments=True)[1:])


def test_most_commands_run() -> None:
    every = [block for page in PAGES for block in blocks(page)]
    assert len([block for block in every if block.reason]) <= len(every) * 0.4


def test_a_failing_command_fails(reader: Reader) -> None:
    for line in ("lucid-deploy inspect no-such-folder", 'pip install "lucid-deploy[nothing]"', "make nothing"):
        with pytest.raises(AssertionError, match=r"no-such-folder|nothing"):
            reader.read(Block("bash", f"{line}\n", None))
