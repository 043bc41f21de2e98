"""Answers are kept as they come; what a killed process wrote half is left out."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.answer_log import AnswerLog

OWNER = {"model": "m", "truncate": None}


def test_answers_outlive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "new" / "answers.jsonl"
    log = AnswerLog(path, OWNER)
    log.add("generate_until", ("prompt", {"until": []}), "text\n")
    log.add("loglikelihood", ([1, 2], [3]), (-0.1234567890123, True))
    (tmp_path / "copy.jsonl").write_bytes(path.read_bytes())  # without closing the first
    again = AnswerLog(tmp_path / "copy.jsonl", OWNER)
    assert again.found == 2
    assert again.get("generate_until", ["prompt", {"until": []}]) == "text\n"
    assert again.get("loglikelihood", [[1, 2], [3]]) == [-0.1234567890123, True]
    assert again.get("generate_until", ["prompt", {"until": ["x"]}]) is None
    again.close()


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_line_that_was_cut_off_is_written_anew(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "answers.jsonl"
    log = AnswerLog(path, OWNER)
    for number in range(3):
        log.add("generate_until", (f"é{number}", {}), "a")
    log.close()
    path.write_bytes(path.read_bytes()[:-cut])
    again = AnswerLog(path, OWNER)
    assert again.found == 2
    again.add("generate_until", ("é2", {}), "a")
    again.close()
    assert AnswerLog(path, OWNER).found == 3


def test_nothing_is_left_of_a_longer_line(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    log = AnswerLog(path, OWNER)
    log.add("generate_until", ("p", {}), "a" * 500)
    log.close()
    path.write_bytes(path.read_bytes()[:-1])
    again = AnswerLog(path, OWNER)
    again.add("generate_until", ("p", {}), "b")
    again.close()
    assert AnswerLog(path, OWNER).get("generate_until", ("p", {})) == "b"


def test_a_cut_off_first_line_is_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"owner": {')
    log = AnswerLog(path, OWNER)
    log.add("generate_until", ("p", {}), "a")
    log.close()
    assert AnswerLog(path, OWNER).found == 1


def test_two_runs_do_not_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    first = AnswerLog(path, OWNER)
    first.add("generate_until", ("p", {}), "a")
    with pytest.raises(LucidError, match=r"Another run writes its answers to .*answers\.jsonl\. Wait for it"):
        AnswerLog(path, OWNER)
    first.add("generate_until", ("q", {}), "b")
    first.close()
    again = AnswerLog(path, OWNER)
    assert again.found == 2
    again.close()


def test_a_full_disk_names_the_file_and_leaves_half_a_line_at_most(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")  # Unix
    path = tmp_path / "answers.jsonl"
    log = AnswerLog(path, OWNER)
    log.add("generate_until", ("p", {}), "a")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))
    try:
        with pytest.raises(LucidError, match=r"answers\.jsonl cannot be kept: File too large"), closing(log):
            log.add("generate_until", ("q", {}), "b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    again = AnswerLog(path, OWNER)
    assert again.found == 1
    again.close()


def test_answers_of_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    AnswerLog(path, OWNER).close()
    with pytest.raises(
        LucidError, match=r"holds answers of another run: truncate differ\. Choose another --output-path"
    ):
        AnswerLog(path, {**OWNER, "truncate": "left"})
    path.write_text("[]\n")
    with pytest.raises(LucidError, match="is not a file of answers"):
        AnswerLog(path, OWNER)
    with pytest.raises(LucidError, match="cannot be kept"):
        AnswerLog(path / "below", OWNER)
