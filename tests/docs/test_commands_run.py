"""Every command block of the docs runs, in the order of its page, in a folder of its own.

A block that cannot run here stands below a comment ``<!-- not run: reason -->``, counted and reported so.
``pip install`` and ``make`` are not run, but what they name must exist. Blocks marked ``text`` are output.
"""

from __future__ import annotations

import hashlib
import os
import re
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
NO_SHELL_WORDS = re.compile(r"""'[^']*'|"[^"$`\\]*"|(?:^|\s)\#.*""")  # in quotes and comments they are none
SETTING = re.compile(r"(\w+)=(\S*) ")
# Lines of several pages that leave nothing behind with which a page goes on: one page's run is the others' as well.
EXAMPLE = "python examples/export_own_checkpoint.py --output own-model"
ALONE = re.compile(rf"lucid-deploy verify \./artifact\s*(#.*)?|{re.escape(EXAMPLE)}")
SOURCE = re.compile(rb'"source": "[^"]*"')  # the bundled model or the page's copy of it


@dataclass(frozen=True)
class Block:
    """One fenced block: its kind, its text, and why it cannot run here, if it cannot."""

    kind: str
    text: str
    reason: str | None


def blocks(page: Path) -> list[Block]:
    found = [Block(m["kind"], m["text"], m["reason"]) for m in BLOCK.finditer(page.read_text())]
    return [block for block in found if block.kind in (*SHELL, PYTHON)]


def commands(text: str) -> list[str]:
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]


RUNNABLE = [page for page in PAGES if any(block.reason is None for block in blocks(page))]


@pytest.fixture(scope="session")
def demo_artifact(demo: Callable[..., Artifact]) -> Artifact:
    return demo(logits="last")


class Reader:
    """Does what a page says. Servers stay up until its end.

    ``done`` has the lines that were run on other pages, and what they read there.
    """

    def __init__(self, folder: Path, programs: Path, done: set[str]) -> None:
        self.folder, self.done = folder, done
        self.environment = {
            **os.environ,
            "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(folder / "cache"),  # libraries that a page builds are not for other tests
        }
        self.servers: list[subprocess.Popen[str]] = []

    def read(self, block: Block) -> None:
        if block.kind == PYTHON:
            (self.folder / "block.py").write_text(block.text)
            self.run(["python", "block.py"], block.text)
            return
        if "<<" in block.text:  # a here-document: lines are no commands
            self.run(["bash", "-euo", "pipefail", "-c", block.text], block.text)
            return
        for line in commands(block.text):
            if ALONE.fullmatch(line) and self.is_done(line):
                continue
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

    def is_done(self, line: str) -> bool:
        """Say whether a page before had a line, and an artifact of the same bytes; from now on, one had."""
        read = hashlib.sha256(line.split("#")[0].strip().encode())
        for file in sorted((self.folder / "artifact").glob("*")) if line != EXAMPLE else ():
            kept = SOURCE.sub(b"", file.read_bytes()) if file.name == "lucid.json" else file.read_bytes()
            read.update(file.name.encode() + kept)
        known = read.hexdigest() in self.done
        self.done.add(read.hexdigest())
        return known

    def call(self, line: str) -> None:
        """Run a command without a process of its own, which would import everything again."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            for name in ("PATH", "XDG_CACHE_HOME"):
                patch.setenv(name, self.environment[name])
            while setting := SETTING.match(line):
                patch.setenv(*setting.groups())
                line = line[setting.end() :]
            result = CliRunner().invoke(main, shlex.split(line, comments=True)[1:])
        assert result.exit_code == 0, f"{line}\n{result.output[-3000:]}\n{result.exception!r}"

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


@pytest.fixture
def reader(tmp_path: Path, preloaded: Path, done: set[str]) -> Iterator[Reader]:
    made = Reader(tmp_path, preloaded, done)
    yield made
    made.leave()


def check_extras(line: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for named in re.findall(r"(?:lucid-deploy|\.)\[([\w,]+)\]", line):
        assert set(named.split(",")) <= set(extras), line


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.name)
def test_the_commands_of_a_page(page: Path, reader: Reader, demo_artifact: Artifact) -> None:
    folder, text = reader.folder, page.read_text()
    shutil.copytree(resolve("demo"), folder / "path" / "to" / "checkpoint")
    (folder / "examples").symlink_to(ROOT / "examples")
    if not re.search(r"(--output|-o) (\./)?artifact\b", text):  # pages that go on from the quickstart's artifact
        shutil.copytree(demo_artifact.directory, folder / "artifact")
    for block in blocks(page):
        if block.reason is None:
            reader.read(block)


NOT_RUN = [(page, block) for page in PAGES for block in blocks(page) if block.reason is not None]


@pytest.mark.parametrize(("page", "block"), NOT_RUN, ids=lambda item: getattr(item, "name", ""))
def test_commands_that_cannot_run_here(page: Path, block: Block) -> None:
    pytest.skip(f"{page.name}: {block.reason}")


@pytest.mark.parametrize(
    ("line", "one"),
    [
        ("lucid-deploy verify ./artifact --quick   # a fraction; says what it leaves out", True),
        ("lucid-deploy export --keep-float 'layers.*.k_proj' --prompt \"a ? b\"", True),
        ("LUCID_DEPLOY_EXPORT_DTYPE=bf16 lucid-deploy export", True),
        ("lucid-deploy export layers.*", False),
        ('lucid-deploy run --prompt "$(cat file)"', False),
        ("lucid-deploy eval | tee file", False),
        ("echo 'x' > file", False),
        ("lucid-deploy plugin build", False),
    ],
)
def test_lines_that_need_no_shell(line: str, one: bool) -> None:
    assert is_one_command(line) is one


def test_most_commands_run() -> None:
    assert len(NOT_RUN) <= sum(len(blocks(page)) for page in PAGES) / 3


def test_a_line_of_several_pages_is_run_once_for_what_it_reads(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    reader.done, ran = set(), []
    for way in ("call", "run"):
        monkeypatch.setattr(reader, way, lambda line, *_: ran.append(line))
    verify = Block("", "lucid-deploy verify ./artifact  # all\nlucid-deploy verify ./artifact --quick\n", None)
    reader.read(verify)
    reader.read(verify)
    (reader.folder / "artifact").mkdir()
    (reader.folder / "artifact" / "lucid.json").write_text("{}")
    reader.read(verify)
    whole, quick = commands(verify.text)
    assert ran == [whole, quick, quick, whole, quick]
    lines = [line for page in RUNNABLE for block in blocks(page) for line in commands(block.text)]
    assert {"lucid-deploy verify ./artifact", EXAMPLE} == {
        line for line in lines if ALONE.fullmatch(line) and lines.count(line) > 1
    }


def test_a_failing_command_fails(reader: Reader) -> None:
    with pytest.raises(AssertionError, match="no-such-folder"):
        reader.read(Block("bash", "lucid-deploy inspect no-such-folder\n", None))
    with pytest.raises(AssertionError):
        reader.read(Block("", 'pip install "lucid-deploy[nothing]"\n', None))
