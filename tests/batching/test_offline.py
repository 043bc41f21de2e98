"""Answers to a file of prompts, from a batcher that follows a script."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lucid_deploy.batching import Finished, Request, Token
from lucid_deploy.batching.answers import AnswerFile, AnswerTokens, answer_prompts
from lucid_deploy.batching.prompts import Prompt
from lucid_deploy.generation.sampling import Sampling
from tests.generation.sample_tokenizers import byte_ids, make

TEXT = "aé漢b"


class ScriptedBatcher:
    """Gives every request the bytes of one text, one a step, and its end."""

    tokens = AnswerTokens()

    def __init__(self, ids: list[int], end: Finished | None = None, rows: int = 2) -> None:
        self.ids, self.end, self.rows = ids, end, rows
        self.requests: list[Request] = []
        self.running: dict[int, int] = {}
        self.queue: list[int] = []
        self.cancelled: list[int] = []
        self.most_waiting = 0

    @property
    def waiting(self) -> int:
        return len(self.queue)

    def submit(self, request: Request) -> int:
        self.requests.append(request)
        self.queue.append(len(self.requests) - 1)
        self.most_waiting = max(self.most_waiting, self.waiting)
        return self.queue[-1]

    def cancel(self, number: int) -> None:
        self.cancelled.append(number)

    def step(self) -> list[Any]:
        while self.queue and len(self.running) < self.rows:
            self.running[self.queue.pop(0)] = 0
        events: list[Any] = []
        for number, done in list(self.running.items()):
            if done < len(self.ids):
                events.append(Token(number, self.ids[done], drafted=done % 3 > 0))
                self.running[number] += 1
            else:
                end = self.end or Finished(0, "length")
                events.append(Finished(number, end.reason, end.error))
                del self.running[number]
        return events


def prompt(line: int, *stops: str) -> Prompt:
    return Prompt(line, f"id{line}", None, (1, 2), 10, Sampling(), stops, True)


def run(
    folder: Path,
    prompts: list[Prompt],
    text: bytes = TEXT.encode(),
    end: Finished | None = None,
    tokens_only: bool = False,
) -> tuple[dict[int, dict[str, Any]], ScriptedBatcher, list[tuple[int, int]]]:
    tokenizer = make("bytes alone", folder)
    batcher: Any = ScriptedBatcher(byte_ids(tokenizer, text), end)
    progress: list[tuple[int, int]] = []
    file = AnswerFile(folder / "answers", {}, {one.line for one in prompts})
    try:
        batcher.tokens = answer_prompts(
            batcher, prompts, file, None if tokens_only else tokenizer, lambda *counts: progress.append(counts)
        )
    finally:
        file.close()
    found = [json.loads(line) for line in (folder / "answers").read_text().splitlines()]
    return {answer["line"]: answer for answer in found}, batcher, progress


def test_every_prompt_gets_its_answer(tmp_path: Path) -> None:
    answers, batcher, progress = run(tmp_path, [prompt(line) for line in (1, 3, 4, 8, 9)])
    assert sorted(answers) == [1, 3, 4, 8, 9]
    ids = byte_ids(make("bytes alone", tmp_path), TEXT.encode())
    assert answers[3] == {
        "line": 3,
        "id": "id3",
        "text": TEXT,
        "ids": ids,
        "finish_reason": "length",
        "prompt_tokens": 2,
        "error": None,
    }
    assert batcher.most_waiting <= batcher.rows
    assert progress[-1] == (5, 5)


def test_stop_strings_end_an_answer_and_free_its_row(tmp_path: Path) -> None:
    answers, batcher, _ = run(tmp_path, [prompt(1, "漢"), prompt(2, "zz"), prompt(3, "é漢b"), prompt(4, "b")])
    assert [answers[line]["text"] for line in (1, 2, 3, 4)] == ["aé", TEXT, "a", "aé漢"]
    assert [answers[line]["finish_reason"] for line in (1, 2, 3, 4)] == ["stop", "length", "stop", "stop"]
    assert sorted(batcher.cancelled) == [0, 2, 3]
    ids = [answer["ids"] for answer in answers.values()]  # the batcher goes on behind the stop strings
    drafted = sum(place % 3 > 0 for each in ids for place in range(len(each)))
    assert batcher.tokens == AnswerTokens(sum(map(len, ids)), drafted)


def test_a_prompt_that_fails_has_its_reason(tmp_path: Path) -> None:
    answers, _, _ = run(tmp_path, [prompt(1)], b"ab", Finished(0, "error", "not finite"))
    assert (answers[1]["error"], answers[1]["finish_reason"], answers[1]["text"]) == ("not finite", "error", "ab")


def test_token_ids_alone(tmp_path: Path) -> None:
    answers, _, _ = run(tmp_path, [prompt(1)], tokens_only=True)
    assert answers[1]["text"] is None and len(answers[1]["ids"]) == len(TEXT.encode())


def test_what_is_answered_is_not_run_again(tmp_path: Path) -> None:
    run(tmp_path, [prompt(1), prompt(2)])
    _, batcher, progress = run(tmp_path, [prompt(1), prompt(2)])
    assert (batcher.requests, progress) == ([], [])
