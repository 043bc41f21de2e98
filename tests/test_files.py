"""Directories and files that appear whole or not at all, whatever comes between."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lucid_deploy import files
from lucid_deploy.files import (
    Leftovers,
    partial_directory,
    put_in_place,
    remove_leftovers,
    resumable,
    resumable_directory,
    whole_directory,
    write_whole,
)
from tests.patience import PATIENCE

StopAt = Callable[..., None]
READ_ONLY = PermissionError(errno.EACCES, "Permission denied")


def filled(directory: Path, content: str) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "file").write_text(content)
    return directory


def content(directory: Path) -> str:
    return (directory / "file").read_text()


def hidden(directory: Path) -> list[str]:
    """What was left behind: all temporary names begin with a dot."""
    return sorted(path.name for path in directory.iterdir() if path.name.startswith("."))


@pytest.fixture
def building(tmp_path: Path) -> Iterator[Path]:
    with partial_directory(tmp_path / "target") as made:
        yield filled(made, "new")


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> StopAt:
    """Return a function that makes the n-th rename raise, before it is done or just after."""
    rename = os.rename

    def arrange(number: int, error: BaseException, done: bool = False) -> None:
        calls: list[Path] = []

        def stopped(source: Path, target: Path) -> None:
            calls.append(source)
            if len(calls) != number:
                rename(source, target)
                return
            if done:
                rename(source, target)
            raise error

        monkeypatch.setattr("os.rename", stopped)

    return arrange


def test_a_new_directory(building: Path, tmp_path: Path) -> None:
    put_in_place(building, tmp_path / "target")
    assert content(tmp_path / "target") == "new"
    assert stat.S_IMODE((tmp_path / "target").stat().st_mode) == 0o755
    assert hidden(tmp_path) == []


def test_a_directory_that_is_replaced(building: Path, tmp_path: Path) -> None:
    (filled(tmp_path / "target", "old") / "more").touch()
    put_in_place(building, tmp_path / "target")
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["file"]
    assert content(tmp_path / "target") == "new"
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), READ_ONLY], ids=repr)
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_rename_that_does_not_go_well(
    building: Path, tmp_path: Path, stop_at: StopAt, number: int, done: bool, error: BaseException
) -> None:
    """Once the second rename is done the new directory is there, before that the old one; never neither."""
    target = filled(tmp_path / "target", "old")
    stop_at(number, error, done)
    with pytest.raises(type(error)):
        put_in_place(building, target)
    replaced = (number, done) == (2, True)
    assert content(target) == ("new" if replaced else "old")
    assert hidden(tmp_path) == ([] if replaced else [building.name]), "nothing beside what the caller made"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), READ_ONLY], ids=repr)
def test_a_first_rename_that_does_not_go_well(
    building: Path, tmp_path: Path, stop_at: StopAt, error: BaseException
) -> None:
    stop_at(1, error)
    with pytest.raises(type(error)):
        put_in_place(building, tmp_path / "target")
    assert hidden(tmp_path) == [building.name] and content(building) == "new"
    assert not (tmp_path / "target").exists()


def test_an_old_directory_that_cannot_be_moved_back_is_kept(
    building: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the only copy, so it stays under its temporary name."""
    target = filled(tmp_path / "target", "old")
    rename, calls = os.rename, []

    def once(source: Path, destination: Path) -> None:
        calls.append(source)
        if len(calls) > 1:
            raise READ_ONLY
        rename(source, destination)

    monkeypatch.setattr("os.rename", once)
    with pytest.raises(PermissionError):
        put_in_place(building, target)
    (kept,) = tmp_path.glob(".target.*.old/target")
    assert content(kept) == "old"


def test_a_target_that_goes_away_meanwhile(building: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, rename = filled(tmp_path / "target", "old"), os.rename

    def late(source: Path, destination: Path) -> None:
        if source == target:
            shutil.rmtree(target)
        rename(source, destination)

    monkeypatch.setattr("os.rename", late)
    with pytest.raises(FileNotFoundError):
        put_in_place(building, target)
    assert hidden(tmp_path) == [building.name]


def test_a_parent_that_turns_read_only(building: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No place to move the old directory to: it stays where it is."""
    target = filled(tmp_path / "target", "old")

    def refuse(*_: object) -> None:
        raise READ_ONLY

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(PermissionError):
        put_in_place(building, target)
    assert content(target) == "old" and content(building) == "new"


@pytest.mark.parametrize("parent", ["/proc", "/nowhere"])
def test_a_parent_that_cannot_be_written(parent: str) -> None:
    with pytest.raises(OSError), whole_directory(Path(parent, "target")):
        pytest.fail("there is nothing to fill")


def test_a_file_in_the_way_is_replaced_like_a_directory(building: Path, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    put_in_place(building, tmp_path / "target")
    assert content(tmp_path / "target") == "new"
    assert hidden(tmp_path) == []


def test_a_file_in_the_way_stays_if_that_fails(building: Path, tmp_path: Path, stop_at: StopAt) -> None:
    (tmp_path / "target").write_text("old")
    stop_at(2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        put_in_place(building, tmp_path / "target")
    assert (tmp_path / "target").read_text() == "old"
    assert hidden(tmp_path) == [building.name]


@pytest.mark.parametrize("absolute", [True, False], ids=["absolute", "relative"])
@pytest.mark.parametrize("stopped", [False, True], ids=["done", "stopped"])
def test_a_link_is_replaced_and_not_what_it_points_to(
    building: Path, tmp_path: Path, stop_at: StopAt, absolute: bool, stopped: bool
) -> None:
    """A relative link leads nowhere while it is aside; it must be found again all the same."""
    elsewhere, target = filled(tmp_path / "elsewhere", "old"), tmp_path / "target"
    target.symlink_to(elsewhere if absolute else Path("elsewhere"))
    if stopped:
        stop_at(2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            put_in_place(building, target)
    else:
        put_in_place(building, target)
    assert content(elsewhere) == "old"
    assert target.is_symlink() == stopped
    assert content(target) == ("old" if stopped else "new")
    assert hidden(tmp_path) == ([building.name] if stopped else [])


def test_a_link_to_nothing_is_refused(building: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.symlink_to("gone")
    with pytest.raises(NotADirectoryError):
        put_in_place(building, target)
    assert target.is_symlink() and content(building) == "new"


def test_a_block_that_raises_leaves_nothing(tmp_path: Path) -> None:
    target = filled(tmp_path / "target", "old")
    with pytest.raises(KeyboardInterrupt), whole_directory(target) as building:
        filled(building, "half")
        assert building.parent == tmp_path
        raise KeyboardInterrupt
    assert content(target) == "old"
    assert hidden(tmp_path) == []


def test_a_block_that_ends_well(tmp_path: Path) -> None:
    with whole_directory(tmp_path / "target") as building:
        filled(building, "new")
        assert not (tmp_path / "target").exists()
    assert content(tmp_path / "target") == "new"
    assert hidden(tmp_path) == []


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o027, 0o077], ids=oct)
def test_what_is_new_has_the_permissions_that_the_user_chose(
    tmp_path: Path, mask: int, umask: Callable[[int], int]
) -> None:
    umask(mask)
    for _ in range(2):  # the second directory replaces the first
        with whole_directory(tmp_path / "directory") as building:
            write_whole(building / "file", b"new")
            write_whole(building / "program", b"new", mode=0o777)
            write_whole(building / "secret", b"new", mode=0o600)
    write_whole(tmp_path / "file", b"new")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    executable, plain = 0o777 & ~mask, 0o666 & ~mask
    assert modes == {"directory": executable, "program": executable, "file": plain, "secret": 0o600}


def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path, umask: Callable[[int], int]) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    path.touch()
    path.chmod(0o640)
    link.symlink_to(path)
    write_whole(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    write_whole(link, b"new")  # a link has no permissions of its own
    assert stat.S_IMODE(link.lstat().st_mode) == 0o644 and path.read_bytes() == b"new"


def test_a_private_file_is_private_while_it_is_replaced(
    tmp_path: Path, umask: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sync = tmp_path / "secret", os.fsync
    path.touch(0o600)
    seen: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: (seen.append(stat.S_IMODE(os.fstat(file).st_mode)), sync(file)))
    write_whole(path, b"new")
    assert seen == [0o600]


def test_a_directory_that_is_replaced_keeps_its_permissions(tmp_path: Path, umask: Callable[[int], int]) -> None:
    target = tmp_path / "artifact"
    target.mkdir(0o700)
    with whole_directory(target) as building:
        (building / "file").touch()
    assert stat.S_IMODE(target.stat().st_mode) == 0o700 and (target / "file").exists()


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o755], ids=oct)
def test_a_file_is_written_with_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"older and longer")
    write_whole(path, b"new", mode)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("call", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")], ids=repr)
def test_a_file_that_cannot_be_written_is_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(type(error)):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert hidden(tmp_path) == []


def test_a_directory_in_the_files_way(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / "taken", b"new")
    assert hidden(tmp_path) == []


def test_a_link_to_a_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"old")
    (tmp_path / "link").symlink_to("elsewhere")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "elsewhere").read_bytes() == b"old"
    assert not (tmp_path / "link").is_symlink() and (tmp_path / "link").read_bytes() == b"new"


KILLED = """
import sys, os, pathlib
from lucid_deploy import files
target = pathlib.Path(sys.argv[1])
rename = os.rename

def killed(*arguments):
    rename(*arguments)
    os.kill(os.getpid(), 9)

with files.partial_directory(target) as building:
    (building / "file").write_text("half")
    if sys.argv[2] == "wait":
        print("ready", flush=True)
        sys.stdin.read()
    if sys.argv[2] == "replace":
        os.rename = killed
        files.put_in_place(building, target)
    os.kill(os.getpid(), 9)
"""


def start(target: Path, what: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", KILLED, str(target), what], stdin=pipe, stdout=pipe, text=True)


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    with start(tmp_path / "target", "kill") as process:
        assert process.wait(PATIENCE) == -9
    [left] = hidden(tmp_path)
    assert remove_leftovers(tmp_path, dry_run=True).removed == (tmp_path / left,)
    assert hidden(tmp_path) == [left]
    assert remove_leftovers(tmp_path) == Leftovers(removed=(tmp_path / left,))
    assert hidden(tmp_path) == []


def test_what_a_running_process_makes_stays(tmp_path: Path) -> None:
    with start(tmp_path / "target", "wait") as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        [making] = hidden(tmp_path)
        with partial_directory(tmp_path / "other") as other:  # its own, and beside it another one's
            assert remove_leftovers(tmp_path).in_use == tuple(sorted([tmp_path / making, other]))
            assert hidden(tmp_path) == sorted([making, other.name])
        process.stdin.close()
        process.wait(PATIENCE)
    assert remove_leftovers(tmp_path).removed == (tmp_path / making,)


def test_what_was_moved_aside_gets_its_name_back(tmp_path: Path) -> None:
    filled(tmp_path / "target", "old")
    with start(tmp_path / "target", "replace") as process:
        process.wait(PATIENCE)
    assert not (tmp_path / "target").exists() and len(hidden(tmp_path)) == 2
    with partial_directory(tmp_path / "target"):  # the next one tidies up first
        assert content(tmp_path / "target") == "old"
    assert hidden(tmp_path) == []


def test_the_next_one_removes_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:  # as if the process had been killed: nothing is tidied up
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            write_whole(tmp_path / "file", b"half")
    assert len(hidden(tmp_path)) == 1
    with whole_directory(tmp_path / "target") as building:
        filled(building, "new")
    assert hidden(tmp_path) == []


def test_names_of_others_stay(tmp_path: Path) -> None:
    names = [".target.partial", ".target.abcdefgh.partial", ".a.abcdefg.lucid.partial", "a.abcdefgh.lucid.partial"]
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / ".link.abcdefgh.lucid.partial").symlink_to(filled(tmp_path / "elsewhere", "precious"))
    assert remove_leftovers(tmp_path) == Leftovers()
    assert content(tmp_path / "elsewhere") == "precious"
    assert {*names, ".link.abcdefgh.lucid.partial"} <= {path.name for path in tmp_path.iterdir()}


def test_a_directory_that_is_taken_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, made = os.mkdir, []

    def taken(path: Path, *mode: int) -> None:
        make(path, *mode)
        made.append(str(path))

    lock = fcntl.flock

    def late(handle: int, operation: int) -> None:
        if len(made) == 1:
            shutil.rmtree(made[0])
        lock(handle, operation)

    monkeypatch.setattr(os, "mkdir", taken)
    monkeypatch.setattr(fcntl, "flock", late)
    with partial_directory(tmp_path / "target") as building:
        assert len(made) == 2 and str(building) == made[1]
        assert building.is_dir()


def test_without_locks_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    left = tmp_path / ".target.abcdefgh.lucid.partial"
    left.mkdir()
    assert remove_leftovers(tmp_path).in_use == (left,)
    with whole_directory(tmp_path / "target") as building:
        filled(building, "new")
    assert hidden(tmp_path) == [left.name]


def test_what_an_interrupted_command_goes_on_with(tmp_path: Path) -> None:
    """It stays after Ctrl-C and errors, is found with its key alone, and goes with success, empty, or when asked."""
    target = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), resumable_directory(target, "a" * 64) as place:
        assert place is not None
        filled(place, "kept")
        with resumable_directory(target, "a" * 64) as used:
            assert used is None
        assert remove_leftovers(tmp_path, unfinished=True).in_use == (place,)
        raise KeyboardInterrupt
    assert resumable(target) == [place] and resumable(tmp_path / "other") == []
    assert remove_leftovers(tmp_path) == Leftovers() and content(place) == "kept"
    with pytest.raises(KeyboardInterrupt), resumable_directory(target, "a" * 64) as again:
        assert again == place and content(place) == "kept"
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), resumable_directory(target, "a" * 8 + "b" * 56) as stranger:
        assert stranger == place and not (place / "file").exists()
        raise KeyboardInterrupt
    with resumable_directory(target, "c" * 64) as other:
        assert other != place
    assert hidden(tmp_path) == []
    with pytest.raises(ValueError), resumable_directory(target, "a" * 64):
        raise ValueError
    assert hidden(tmp_path) == [], "nothing was in it"
    with pytest.raises(ValueError), resumable_directory(target, "a" * 64) as place:
        assert place is not None
        filled(place, "kept")
        raise ValueError
    with resumable_directory(target, "a" * 64) as again:
        assert again == place and content(place) == "kept"
    assert hidden(tmp_path) == []
    (tmp_path / ".out.01234567.lucid.resume").mkdir()
    assert len(remove_leftovers(tmp_path, unfinished=True).removed) == 1 and hidden(tmp_path) == []


def test_the_lock_of_a_directory_that_was_removed_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first user ends between the second's opening and locking: a third one must not have the same directory."""
    target, flock = tmp_path / "out", fcntl.flock
    first = resumable_directory(target, "a" * 64)
    first.__enter__()

    def late(handle: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        first.__exit__(None, None, None)
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with resumable_directory(target, "a" * 64) as second:
        assert second is not None and second.is_dir()
        with resumable_directory(target, "a" * 64) as third:
            assert third is None
        assert second.is_dir()
    assert hidden(tmp_path) == []


def test_cleaning_does_not_take_a_directory_that_took_the_place_of_a_removed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, flock = tmp_path / "out", fcntl.flock
    first, second = (resumable_directory(target, "a" * 64) for _ in range(2))
    first.__enter__()

    def late(handle: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        first.__exit__(None, None, None)
        second.__enter__()
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    assert remove_leftovers(tmp_path, unfinished=True).removed == () and len(hidden(tmp_path)) == 1
    second.__exit__(None, None, None)
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("how", ["no fcntl", "no locks"])
def test_without_locks_nothing_is_resumed_and_nothing_stays(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files, "fcntl", None) if how == "no fcntl" else monkeypatch.setattr(fcntl, "flock", refuse)
    with resumable_directory(tmp_path / "out", "a" * 64) as place:
        assert place is None and hidden(tmp_path) == []


def test_success_removes_what_another_command_with_the_same_key_left(tmp_path: Path) -> None:
    """It was running at the beginning, and was interrupted meanwhile."""
    target = tmp_path / "out"
    with resumable_directory(target, "a" * 64) as mine:
        assert mine is not None
        other = resumable_directory(target, "a" * 64)
        assert other.__enter__() is None
        filled(mine, "kept")
        shutil.copytree(mine, kept := tmp_path / "kept")
    kept.rename(mine)
    other.__exit__(None, None, None)
    assert hidden(tmp_path) == []
