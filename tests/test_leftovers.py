"""What processes that were killed left under temporary names, and what an interrupted command goes on with."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lucid_deploy import leftovers
from lucid_deploy.files import (
    partial_directory,
    resumable,
    resumable_directory,
    whole_directory,
    write_whole,
)
from lucid_deploy.leftovers import Leftovers, remove_leftovers
from tests.filled_directories import content, filled, hidden
from tests.patience import PATIENCE

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


TOGETHER = """
import json, os, pathlib, shutil, sys
from lucid_deploy import files, leftovers
folder, old, rename = pathlib.Path(sys.argv[1]), sys.argv[2:], os.rename
made = {folder / name: folder / f".{name}.01234567.lucid.partial" for name in ("one", "two")}

def fill(directory, content):
    directory.mkdir()
    (directory / "file").write_text(content)

def ends(function, *arguments, renames):
    # Whether it gets to its end before it is killed, behind so many renames.
    if not (child := os.fork()):
        done = []
        def killed(*names):
            rename(*names)
            done.append(names)
            if len(done) == renames:
                os.kill(os.getpid(), 9)
        os.rename = killed
        function(*arguments)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0

def found():
    return {path.name: "".join(file.read_text() for file in path.glob("file")) for path in folder.iterdir()}

def shown():
    return {name: content for name, content in found().items() if not name.startswith(".")}

ended = False
for renames in range(1, 20):
    for of_cleaning in range(1, 20):
        folder.mkdir()
        for target in old:
            fill(folder / target, "old")
        for building in made.values():
            fill(building, "new")
        ended = ends(files.put_all_in_place, made, renames=renames)
        between = shown()
        cleaned = ends(leftovers.remove_leftovers, folder, renames=of_cleaning)
        cut = shown()
        leftovers.remove_leftovers(folder)
        print(json.dumps([between, cut, found()]))
        shutil.rmtree(folder)
        if cleaned:
            break
    if ended:
        break
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


@pytest.mark.parametrize("old", [["one", "two"], ["two"], []], ids=str)
def test_of_several_all_are_new_or_none_after_kill_9_at_any_moment(old: list[str], tmp_path: Path) -> None:
    """New and old are never beside each other; the next one puts back what was there, though it be killed itself."""
    command = [sys.executable, "-c", TOGETHER, str(tmp_path / "folder"), *old]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    outcomes = [json.loads(line) for line in said.splitlines()]
    new, before = {"one": "new", "two": "new"}, dict.fromkeys(old, "old")
    for between, cut, after in outcomes:
        assert len({*between.values()}) <= 1 and len({*cut.values()}) <= 1
        assert after == (new if between == new else before)
    assert len(outcomes) > 6 + 4 * len(old) and outcomes[0][2] == before and outcomes[-1] == [new, new, new]


def test_what_somebody_else_put_at_a_name_stays(tmp_path: Path) -> None:
    """Only directories that the killed process had made lose their names."""
    filled(tmp_path / "two", "somebody's")
    aside = tmp_path / ".one.01234567.lucid.old"
    aside.mkdir()
    filled(aside / "one", "old")
    filled(aside / "two", "old")
    (aside / leftovers.TOGETHER).write_text(json.dumps({"one": 1, "two": 2}))
    assert remove_leftovers(tmp_path, dry_run=True).restored == (tmp_path / "one",) and aside.exists()
    assert remove_leftovers(tmp_path) == Leftovers(restored=(tmp_path / "one",))
    assert content(tmp_path / "one") == "old" and content(tmp_path / "two") == "somebody's" and hidden(tmp_path) == []


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
    monkeypatch.setattr(leftovers, "fcntl", None)
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

    monkeypatch.setattr(leftovers, "fcntl", None) if how == "no fcntl" else monkeypatch.setattr(fcntl, "flock", refuse)
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
