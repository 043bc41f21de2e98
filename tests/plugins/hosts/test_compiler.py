"""Finding and running the C++ compiler, and finding headers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.plugins.hosts.compiler import (
    COMPILERS,
    check_gcc,
    find_compiler,
    find_header,
    run_compiler,
)
from tests.patience import PATIENCE


def program(folder: Path, name: str, text: str = "#!/bin/sh\nexit 0\n") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_cxx_takes_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bin"
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CXX", raising=False)
    for name in reversed(COMPILERS):
        path = program(folder, name)
        assert find_compiler() == str(path), "the first of the list that is there"
    own = program(tmp_path / "own", "clang-99")
    monkeypatch.setenv("CXX", str(own))
    assert find_compiler() == str(own)
    monkeypatch.setenv("CXX", "clang-98")
    with pytest.raises(LucidError, match=r"none was found \(CXX=clang-98\)"):
        find_compiler()


def test_a_missing_compiler_names_those_that_were_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(LucidError, match=r"none was found \(g\+\+, c\+\+, clang\+\+\)\. Install g\+\+\."):
        find_compiler()


def test_clang_is_refused(tmp_path: Path) -> None:
    check_gcc(str(program(tmp_path / "bin", "gcc", "#!/bin/sh\necho '#define __GNUC__ 14'\n")))
    clang = program(tmp_path / "bin", "c++", "#!/bin/sh\necho '#define __GNUC__ 4'\necho '#define __clang__ 1'\n")
    with pytest.raises(LucidError, match=r"compiles with GCC only, and .*/c\+\+ is Clang\. Install g\+\+, and set CXX"):
        check_gcc(str(clang))
    with pytest.raises(LucidError, match=r"The compiler .*none cannot be run"):
        check_gcc(str(tmp_path / "none"))


def test_a_signal_kills_the_compilers_processes(tmp_path: Path) -> None:
    """g++ starts other programs, which do not end with it, and writes temporary files to TMPDIR."""
    slow = "#!/bin/sh\nsleep 1000 &\necho $! > $TMPDIR/child.new\nmv $TMPDIR/child.new $TMPDIR/child\nwait\n"
    compiler, scratch = program(tmp_path / "bin", "slow", slow), tmp_path / "scratch"
    scratch.mkdir()

    def unwind(*_: object) -> None:
        raise SystemExit

    def send() -> None:
        wait_until((scratch / "child").exists)
        os.kill(os.getpid(), signal.SIGTERM)

    before, sender = signal.signal(signal.SIGTERM, unwind), threading.Thread(target=send)
    try:
        sender.start()
        with pytest.raises(SystemExit):
            run_compiler([str(compiler)], scratch / "lib.so")
    finally:
        sender.join()
        signal.signal(signal.SIGTERM, before)
    child = int((scratch / "child").read_text())
    wait_until(lambda: not is_running(child))


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"  # not waited for yet
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_find_header_returns_the_first_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_ROOT", raising=False)
    places = [tmp_path / name for name in ("empty", "first", "second", "root/include")]
    for place in places:
        place.mkdir(parents=True)
    for place in places[1:]:
        (place / "some.h").touch()
    assert find_header("some.h", "SOME_ROOT", places[:3], "its headers") == places[1]
    monkeypatch.setenv("SOME_ROOT", str(tmp_path / "root"))
    assert find_header("some.h", "SOME_ROOT", places[:3], "its headers") == places[3]
    monkeypatch.setenv("SOME_ROOT", str(tmp_path / "empty"))  # nowhere else, then
    with pytest.raises(LucidError, match=r"SOME_ROOT is .*empty, which contains no include/some\.h"):
        find_header("some.h", "SOME_ROOT", places[:3], "its headers")
    monkeypatch.delenv("SOME_ROOT")
    with pytest.raises(LucidError, match=r"needs its headers \(some\.h\), which were not found\. Set SOME_ROOT"):
        find_header("some.h", "SOME_ROOT", places[:1], "its headers")
