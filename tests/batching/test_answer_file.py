"""The file of answers: complete lines, one for each prompt, and refusals of files that another run began."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.batching.answer_file import AnswerFile
from lucid_deploy.errors import CheckFailed, LucidError

FACTS = {"prompts": "hash", "options": {"n": 1}}
LINES = {1, 2, 3}


def opened(path: Path, facts: dict[str, Any] = FACTS, **more: Any) -> AnswerFile:
    return AnswerFile(path, facts, LINES, **more)


def answer(line: int, error: str | None = None) -> dict[str, Any]:
    return {"line": line, "text": "é\nx", "error": error}


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A file with answers to two of three prompts, one of them an error."""
    file = opened(tmp_path / "answers")
    file.write([answer(2), answer(1, "why")])
    file.close()
    return tmp_path / "answers"


def test_a_second_run_adds_the_missing_answers(begun: Path) -> None:
    file = opened(begun)
    assert (file.answered, file.failed) == ({1, 2}, 1)
    file.write([answer(3)])
    assert (file.answered, file.failed) == ({1, 2, 3}, 1)
    file.close()
    assert [json.loads(line)["line"] for line in begun.read_text().splitlines()] == [2, 1, 3]


@pytest.mark.parametrize("torn", [b'{"line": 3', b"\0" * 20 + b"\n", b'{"line": 3, "text": "\xc3' + b"x" * 1000])
def test_an_incomplete_last_line_is_cut_off_and_answered_again(torn: bytes, begun: Path) -> None:
    whole = begun.read_bytes()
    begun.write_bytes(whole + torn)
    file = opened(begun)
    assert file.answered == {1, 2}
    file.write([answer(3)])
    file.close()
    assert begun.read_bytes().startswith(whole)
    assert len(begun.read_bytes().splitlines()) == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[]\n", "line 3 is not an answer"),
        (b'{"line": [1]}\n', "line 3 is not an answer"),
        (b"[" * 100_000 + b"\n", "line 3 is not an answer"),
        (b'{"line": 2}\n', "answers prompt 2 twice"),
        (b'{"line": 9}\n', "answers prompt 9 that is not in the prompts"),
    ],
)
def test_a_changed_file_is_refused_and_stays_as_it_is(line: bytes, message: str, begun: Path) -> None:
    damaged = begun.read_bytes() + line + b'{"line": 3}\n'
    begun.write_bytes(damaged)
    with pytest.raises(CheckFailed, match=message):
        opened(begun)
    assert begun.read_bytes() == damaged


def test_a_file_of_another_run_is_refused_without_overwrite(begun: Path) -> None:
    for facts in ({**FACTS, "prompts": "other"}, {"options": {}}, {**FACTS, "more": 1}):
        with pytest.raises(LucidError, match="was begun with other"):
            opened(begun, facts)
    file = opened(begun, {"prompts": "other"}, overwrite=True)
    assert file.answered == set()
    file.close()
    assert begun.read_bytes() == b""


@pytest.mark.parametrize(
    ("record", "message"),
    [(None, "its run, is missing"), ("[]", "not the record"), ("{", "cannot be"), ("[" * 100_000, "cannot be")],
)
def test_a_missing_or_invalid_record_is_refused(record: str | None, message: str, begun: Path) -> None:
    path = begun.with_name("answers.run.json")
    path.unlink() if record is None else path.write_text(record)
    with pytest.raises(LucidError, match=message):
        opened(begun)


def test_a_file_that_another_run_writes_is_refused(tmp_path: Path) -> None:
    file = opened(tmp_path / "answers")
    with pytest.raises(LucidError, match="being written by another run"):
        opened(tmp_path / "answers")
    file.close()
    opened(tmp_path / "answers").close()


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LucidError, match="not a regular file"):
        opened(tmp_path)
    with pytest.raises(LucidError, match="cannot be written: No such file"):
        opened(tmp_path / "missing" / "answers")
    with pytest.raises(LucidError, match="not a regular file"):
        opened(Path("/dev/full"))


def test_a_full_disk_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = opened(tmp_path / "answers")

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lucid_deploy.batching.answer_file.os.write", full)
    with pytest.raises(LucidError, match=r"No space left on device.+ are kept; free some space"):
        file.write([answer(1)])
    assert file.answered == set()
    file.close()
