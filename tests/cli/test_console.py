"""Results go whole to stdout or to a file, or not at all."""

from __future__ import annotations

import io
import json
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from lucid_deploy.cli._console import (
    INTERVAL,
    ProgressLines,
    every,
    human_size,
    progress,
    shown_after,
    write_json,
    write_text,
)
from lucid_deploy.errors import LucidError
from tests.patience import PATIENCE


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (5 * 2**20, "5.0 MiB"),
        (3 * 2**30, "3.0 GiB"),
        (2**41, "2.0 TiB"),
    ],
)
def test_sizes(size: int, shown: str) -> None:
    assert human_size(size) == shown


def test_json_to_stdout_or_a_file_is_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = {"ü": [1, 2.5, None]}
    write_json(data, "-")
    printed = capsys.readouterr()
    assert json.loads(printed.out) == data and printed.err == ""
    write_json(data, str(tmp_path / "facts.json"))
    assert (tmp_path / "facts.json").read_text() == printed.out
    assert [path.name for path in tmp_path.iterdir()] == ["facts.json"]


@pytest.mark.parametrize(("target", "shown"), [(None, ["all"]), ("facts.json", ["all"]), ("-", [])])
@pytest.mark.parametrize("fails", [False, True])
def test_results_are_shown_also_if_their_file_cannot_be_written(
    fails: bool, target: str | None, shown: list[str]
) -> None:
    said: list[str] = []
    try:
        with shown_after(target, lambda: said.append("all")):
            assert said == []
            if fails:
                raise LucidError("facts.json cannot be written: No space left on device.")
    except LucidError:
        assert fails
    assert said == shown


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_text("new", str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"


@pytest.mark.parametrize("target", ["nowhere/file", "."])
def test_what_cannot_be_written_is_named(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LucidError, match=f"{target} cannot be written: "):
        write_text("text", target)
    assert list(tmp_path.iterdir()) == []


def test_work_that_says_nothing_is_said_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lucid_deploy.cli._console.INTERVAL", 0.01)
    out = io.StringIO()
    monkeypatch.setattr("lucid_deploy.cli._console.console_err", Console(file=out, width=80))
    with progress("Preparing") as update:
        deadline = time.monotonic() + PATIENCE
        while "Preparing; " not in out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        update("Opening", 1, 4)
        while "Opening, 25%; " not in out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    said = out.getvalue()
    assert said.startswith("Preparing; 0 s so far\n") and said.count("Opening, 25%; 0 s so far\n") >= 1
    assert not [thread for thread in threading.enumerate() if thread.name == "lucid-progress"]


def test_a_thread_that_speaks_of_progress_minds_no_closed_stream() -> None:
    called = threading.Event()

    def write() -> None:
        called.set()
        raise BrokenPipeError

    with every(0.001, write):
        assert called.wait(PATIENCE)  # pytest reports what a thread raises


def test_lines_where_no_terminal_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lucid_deploy.cli._console.INTERVAL", INTERVAL)
    out, now = Console(file=io.StringIO(), width=40), [100.0]
    lines = ProgressLines(out, "Answering", lambda: now[0])
    for second in range(26):
        now[0] = 100.0 + second
        lines.update(second, 50)
    now[0] = 131.0
    lines.update("Writing all that there is, which is a long description", 0, None)
    assert out.file.getvalue().splitlines() == [
        "Answering, 20%; 10 s so far",
        "Answering, 40%; 20 s so far",
        "Writing all that there is, which is a long description; 31 s so far",
    ]


def test_short_work_is_silent_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("Working") as update:
        update(1, 3)
        update("Still working", 2, 3)
    assert tuple(capsys.readouterr()) == ("", "")


def test_how_long_a_step_will_take_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """By how fast it went since it began, which may be half done; nothing where that is not known."""
    monkeypatch.setattr("lucid_deploy.cli._console.INTERVAL", INTERVAL)
    now, out = [0.0], Console(file=io.StringIO(), width=200)
    lines = ProgressLines(out, "Exporting", lambda: now[0], estimate=True)
    for seconds, step in (
        (0, ("Calibrating", 0, 10)),
        (30, ("Calibrating", 2, 10)),
        (60, ("Tracing decode", 1, 2)),
        (90, ("Tracing decode", 2, 2)),
    ):
        now[0] = float(seconds)
        lines.update(*step)
    assert out.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "Calibrating, 20%; 30 s so far, about 120 s left",
        "Tracing decode, 50%; 60 s so far",
        "Tracing decode, 100%; 90 s so far",
    ]
