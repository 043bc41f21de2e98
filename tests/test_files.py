"""Directories and files that appear whole or not at all, whatever comes between."""

from __future__ import annotations

import errno
import functools
import itertools
import os
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.files import (
    check_replaceable,
    partial_directory,
    put_all_in_place,
    put_in_place,
    whole_directory,
    write_whole,
)
from tests.filled_directories import content, filled, hidden
from tests.patience import PATIENCE

StopAt = Callable[..., None]
READ_ONLY = PermissionError(errno.EACCES, "Permission denied")


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


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), READ_ONLY], ids=repr)
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("old", [["one", "two"], ["two"], []], ids=str)
def test_of_several_all_are_new_or_none(
    tmp_path: Path, stop_at: StopAt, old: list[str], number: int, done: bool, error: BaseException
) -> None:
    made = {tmp_path / name: filled(tmp_path / f".{name}", "new") for name in ("one", "two")}
    for name in old:
        filled(tmp_path / name, "old")
    renames = 2 + len(old)
    if number > renames:
        put_all_in_place(made)
    else:
        stop_at(number, error, done)
        with pytest.raises(type(error)):
            put_all_in_place(made)
    if number > renames or (number, done) == (renames, True):
        assert [content(target) for target in made] == ["new", "new"] and hidden(tmp_path) == []
    else:
        assert {target.name for target in made if target.exists()} == set(old)
        assert {content(tmp_path / name) for name in old} <= {"old"} and hidden(tmp_path) == [".one", ".two"]


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


def test_what_came_in_the_meantime_stays_where_nothing_may_be_replaced(building: Path, tmp_path: Path) -> None:
    target = filled(tmp_path / "target", "another's")
    with pytest.raises(LucidError, match=r"target exists already: another command made it in the meantime\. Pass"):
        put_in_place(building, target, replace=False)
    assert content(target) == "another's" and hidden(tmp_path) == [building.name]
    with pytest.raises(LucidError), whole_directory(target, replace=False) as more:
        filled(more, "new")
    assert content(target) == "another's" and hidden(tmp_path) == [building.name]


def test_two_that_replace_one_directory_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second came while the old directory was aside and found none: a rename of the first failed."""
    target, rename = filled(tmp_path / "target", "old"), os.rename
    first, second = (filled(tmp_path / name, name) for name in ("first", "second"))
    between, go_on = threading.Event(), threading.Event()
    raised: list[Exception] = []

    def waiting(source: Path, destination: Path) -> None:
        if source == first:
            between.set()
            go_on.wait(PATIENCE)
        rename(source, destination)

    def put(made: Path) -> None:
        try:
            put_in_place(made, target)
        except (OSError, LucidError) as error:
            raised.append(error)

    monkeypatch.setattr(os, "rename", waiting)
    threads = [threading.Thread(target=put, args=(made,)) for made in (first, second)]
    threads[0].start()
    assert between.wait(PATIENCE)
    threads[1].start()
    threads[1].join(0.2)  # long enough for one that does not wait
    go_on.set()
    for thread in threads:
        thread.join()
    assert raised == [] and content(target) == "second" and os.listdir(tmp_path) == ["target"]


def test_what_is_made_within_a_temporary_directory_does_not_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bench exports the baseline into its scratch directory, whose lock it holds: it waited for itself."""
    with partial_directory(tmp_path / "scratch") as scratch:
        monkeypatch.chdir(scratch)
        for target in (scratch / "absolute", Path("relative")):
            with whole_directory(target) as made:
                filled(made, "new")
            with whole_directory(target) as made:
                filled(made, "newer")
            assert content(target) == "newer"
        monkeypatch.chdir(tmp_path)
    assert hidden(tmp_path) == []


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


def test_the_current_folder_is_not_replaced_and_a_link_to_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path / "a")
    for holds in (Path(), Path(".."), tmp_path / "a", tmp_path):
        with pytest.raises(LucidError, match="is or holds the current folder"):
            check_replaceable(holds)
    for free in (Path("b"), Path("new"), tmp_path / "link", tmp_path / "ab"):
        check_replaceable(free)


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


def interrupted_everywhere(function: Callable[[], None]) -> Iterator[int]:
    """Call a function until it ends, and raise the n-th time where Python handles a signal; yield after each raise.

    That is where a function begins, and where one of C's returns, with all that it has done done.
    """
    for place in itertools.count():
        events = itertools.count()

        def signal(_frame: FrameType, event: str, _argument: object) -> None:
            if event in ("call", "c_return") and next(events) == place:  # noqa: B023 - ends before the next one
                sys.setprofile(None)
                raise KeyboardInterrupt

        try:
            sys.setprofile(signal)
            function()
            return
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        yield place


def make_directory(target: Path) -> None:
    with whole_directory(target) as building:
        (building / "file").write_text("new")


def make_file(target: Path) -> None:
    write_whole(target, b"new")


@pytest.mark.parametrize("make", [make_directory, make_file])
def test_a_signal_at_any_place_leaves_nothing_half_done(tmp_path: Path, make: Callable[[Path], None]) -> None:
    target = tmp_path / "target"
    places = 0
    for place in interrupted_everywhere(functools.partial(make, target)):
        assert hidden(tmp_path) == [], place
        if target.is_dir():
            assert (target / "file").read_text() == "new", place
            shutil.rmtree(target)
        elif target.exists():
            assert target.read_text() == "new", place
            target.unlink()
        places += 1
    assert places > 30


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
