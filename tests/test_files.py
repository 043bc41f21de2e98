"""Files and folders appear complete or not at all, whatever comes between."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lucid_deploy import files
from lucid_deploy.errors import LucidError
from lucid_deploy.files import atomic_folders, atomic_write, temporary_sibling

FULL = OSError(errno.ENOSPC, "No space left on device")


def filled(folder: Path, content: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "file").write_text(content)
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {path.name: (path / "file").read_text() for path in folder.iterdir()}


@pytest.fixture(params=["exchange", "renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Replace folders by exchanging their names, and by renames, for file systems that cannot exchange names."""
    if request.param == "renames":
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    return str(request.param)


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def test_a_folder_is_made_with_its_parents_and_replaced_with_its_permissions(way: str, tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "out"
    with atomic_folders(target) as (building,):
        filled(building, "old")
        (building / "more").touch()
        assert not target.exists()
    target.chmod(0o750)
    with atomic_folders(target) as (building,):
        filled(building, "new")
        assert building.parent == target.parent and building.name.startswith("out.tmp-")
    assert [path.name for path in target.iterdir()] == ["file"] and contents(target.parent) == {"out": "new"}
    assert stat.S_IMODE(target.stat().st_mode) == 0o750


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()], ids=repr)
def test_a_block_that_raises_changes_nothing(error: BaseException, tmp_path: Path) -> None:
    filled(tmp_path / "out", "old")
    with pytest.raises(type(error)), atomic_folders(tmp_path / "out") as (building,):
        filled(building, "new")
        raise error
    with pytest.raises(type(error)), atomic_folders(tmp_path / "a" / "b"):
        raise error
    assert contents(tmp_path) == {"out": "old"}


@pytest.mark.parametrize("old", [[], ["two"], ["one", "two"]], ids=str)
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_two_folders_are_replaced_together_or_not_at_all(
    number: int, done: bool, old: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C before or after any of the renames."""
    rename, calls = os.rename, []

    def interrupted(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) != number or done:
            rename(source, target)
        if len(calls) == number:
            raise KeyboardInterrupt

    for name in old:
        filled(tmp_path / name, "old")
    monkeypatch.setattr(os, "rename", interrupted)
    stopped = number <= 2 + len(old)
    try:
        with atomic_folders(tmp_path / "one", tmp_path / "two") as folders:
            for folder in folders:
                filled(folder, "new")
    except KeyboardInterrupt:
        assert stopped
    else:
        assert not stopped
    assert contents(tmp_path) == (dict.fromkeys(old, "old") if stopped else {"one": "new", "two": "new"})


def test_an_old_folder_that_cannot_be_moved_back_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, rename, calls = filled(tmp_path / "out", "old"), os.rename, []

    def failing(source: Path, destination: Path) -> None:
        calls.append(source)
        if len(calls) > 1:
            raise FULL
        rename(source, destination)

    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="No space"), atomic_folders(target) as (building,):
        filled(building, "new")
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith("out.old-") and (kept / "file").read_text() == "old"


@pytest.mark.parametrize("call", ["exchange", "first rename", "second rename"])
def test_kill_9_between_two_steps_loses_neither_version(call: str, tmp_path: Path) -> None:
    filled(tmp_path / "out", "old")
    code = f"""
import os, signal, sys
from pathlib import Path
from lucid_deploy import files
rename, exchange, done = os.rename, files._exchange, []
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def renamed(*names):
    rename(*names)
    done.append(names)
    if len(done) == {2 if call == "second rename" else 1}:
        kill()
os.rename = renamed
files._exchange = (lambda *names: exchange(*names) and kill()) if {call == "exchange"} else lambda *names: False
with files.atomic_folders(Path(sys.argv[1])) as (building,):
    (building / "file").write_text("new")
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")])
    assert done.returncode == -signal.SIGKILL
    left = {name.partition("-")[0]: content for name, content in contents(tmp_path).items()}
    wanted = {
        "exchange": {"out": "new", "out.tmp": "old"},
        "first rename": {"out.old": "old", "out.tmp": "new"},
        "second rename": {"out": "new", "out.old": "old"},
    }
    assert left == wanted[call]


def test_what_exists_is_replaced_only_if_asked_for(way: str, tmp_path: Path) -> None:
    for target, content in (("folder", "old"), ("file", ""), ("link", "")):
        if content:
            filled(tmp_path / target, content)
        elif target == "file":
            (tmp_path / target).touch()
        else:
            (tmp_path / target).symlink_to("folder")
        with pytest.raises(LucidError, match="exists already"), atomic_folders(tmp_path / target, overwrite=False):
            pass
    for target in ("file", "link"):
        with atomic_folders(tmp_path / target) as (building,):
            filled(building, "new")
    assert contents(tmp_path) == {"folder": "old", "file": "new", "link": "new"}


def test_the_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    for target in (Path(), Path(".."), tmp_path / "a"):
        with pytest.raises(LucidError, match="is or holds the current folder"), atomic_folders(target):
            pass


def test_a_temporary_sibling_is_removed(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space"), temporary_sibling(tmp_path / "x") as folder:
        filled(folder, "")
        assert folder.parent == tmp_path
        raise FULL
    assert not list(tmp_path.iterdir())


def test_a_file_has_the_mode_that_was_asked_for_or_keeps_its_own(
    tmp_path: Path, umask: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, modes, fsync = tmp_path / "file", [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (modes.append(os.fstat(file).st_mode & 0o777), fsync(file)))
    for mode, found in ((0o666, 0o644), (0o600, 0o600), (0o777, 0o755)):
        path.unlink(missing_ok=True)
        atomic_write(path, b"", mode)
        assert stat.S_IMODE(path.stat().st_mode) == found == modes[-1]
    for mode in (0o600, 0o666):
        path.chmod(mode)
        atomic_write(path, b"new")
        assert stat.S_IMODE(path.stat().st_mode) == mode == modes[-1]
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_file_that_cannot_be_written_is_unchanged(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("old")

    def fail(*_: object) -> None:
        raise FULL

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="No space"):
        atomic_write(tmp_path / "file", b"new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_link_is_replaced_by_the_file(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("old")
    (tmp_path / "link").symlink_to("elsewhere")
    atomic_write(tmp_path / "link", b"new")
    assert not (tmp_path / "link").is_symlink() and (tmp_path / "link").read_text() == "new"
    assert (tmp_path / "elsewhere").read_text() == "old"
