"""Results go whole to stdout or to a file, or not at all; progress goes to stderr."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from lucid_deploy.cli import _console
from lucid_deploy.cli._console import progress, write_json, write_results, write_text
from lucid_deploy.errors import LucidError


def test_json_to_stdout_or_a_file_is_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = {"ü": [1, 2.5, None]}
    write_json(data, "-")
    printed = capsys.readouterr()
    assert json.loads(printed.out) == data and printed.err == ""
    write_json(data, str(tmp_path / "facts.json"))
    assert (tmp_path / "facts.json").read_text() == printed.out
    assert [path.name for path in tmp_path.iterdir()] == ["facts.json"]


@pytest.mark.parametrize(("target", "shown"), [(None, ["all"]), ("/dev/full", ["all"]), ("-", [])])
def test_results_are_shown_even_if_their_file_cannot_be_written(target: str | None, shown: list[str]) -> None:
    said: list[str] = []
    with pytest.raises(LucidError) if target == "/dev/full" else nullcontext():
        write_results({}, target, lambda: said.append("all"))
    assert said == shown


@pytest.mark.parametrize("target", ["nowhere/file", "."])
def test_a_file_that_cannot_be_written_is_named(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LucidError, match=f"{target} cannot be written: "):
        write_text("text", target)
    assert list(tmp_path.iterdir()) == []


def test_progress_without_a_terminal_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress("Working") as update:
        update(1, 3)  # short work is silent
    assert tuple(capsys.readouterr()) == ("", "")
    monkeypatch.setattr(_console, "INTERVAL", 0.0)
    said: list[str] = []
    monkeypatch.setattr(_console, "note", said.append)
    with progress("Working") as update:
        update("Opening", 1, 4)
        update(2, 4)
    assert said == ["Opening, 25%; 0 s so far", "Working, 50%; 0 s so far"]
