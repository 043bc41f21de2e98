"""Answer a file of prompts with continuous batching; after an interruption, the next run adds the missing answers.

The answer file has one line for each answered prompt. A record beside it holds the options and hashes of prompts and
artifact. A run adds answers to an existing file only if the file's record equals that of the run.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lucid_deploy.batching.batcher import Batcher
from lucid_deploy.batching.prompt_file import Prompt
from lucid_deploy.batching.request import Finished, Token
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.files import atomic_write
from lucid_deploy.generation.text_stream import AnswerText

if TYPE_CHECKING:
    from lucid_deploy.artifact.tokenizer import TextTokenizer


class AnswerFile:
    """Opens an answer file, new or from an interrupted run, and locks it if the file system has locks.

    An incomplete last line, as after a crash, is cut off; its prompt counts as not answered. The record is a file of
    the same name with the suffix ``.run.json``.

    Attributes:
        answered: Line numbers of the prompts that have an answer.
        failed: How many of these answers are errors.

    Args:
        facts: Everything that the answers depend on, for the record.
        lines: Line numbers of all prompts.
        overwrite: Start over, and replace the file.

    Raises:
        LucidError: The file cannot be written, another process is writing it, or it has answers and its record is
            missing, unreadable or has other facts.
        CheckFailed: A line of the file is not an answer, answers none of these prompts, or answers one a second time.
    """

    def __init__(self, path: str | Path, facts: dict[str, Any], lines: set[int], overwrite: bool = False) -> None:
        self.path = Path(path)
        self.record = self.path.with_name(self.path.name + ".run.json")
        self.answered: set[int] = set()
        self.failed = 0
        if self.path.exists() and not self.path.is_file():
            raise LucidError(f"{self.path} is not a regular file; an interrupted batch can continue only from one.")
        try:
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        except OSError as error:
            raise LucidError(f"{self.path} cannot be written: {error.strerror or error}.") from error
        try:
            self._lock()
            self._begin(facts, lines, overwrite)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._handle)

    def write(self, answers: list[dict[str, Any]]) -> None:
        """Append answers, each with the field ``line``, and flush them to disk; raise a LucidError if that fails."""
        text = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
        data = memoryview(text.encode("utf-8", "replace"))
        try:
            while data:
                data = data[os.write(self._handle, data) :]
            os.fsync(self._handle)
        except OSError as error:
            raise LucidError(
                f"{self.path} cannot be written: {error.strerror or error}. Complete answers in it are kept; free some "
                "space and run the same command again."
            ) from error
        self.answered.update(answer["line"] for answer in answers)
        self.failed += sum(answer.get("error") is not None for answer in answers)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LucidError(f"{self.path} is being written by another run.") from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):  # a file system without locks
                raise

    def _begin(self, facts: dict[str, Any], lines: set[int], overwrite: bool) -> None:
        if overwrite:
            os.ftruncate(self._handle, 0)  # first, or a crash could leave old answers beside the new record
        if os.fstat(self._handle).st_size > 0:
            self._compare(facts)
            self._resume(lines)
        else:
            self._write_record(facts)

    def _compare(self, facts: dict[str, Any]) -> None:
        way_out = "Choose another --output, or start over with --overwrite."
        try:
            known = json.loads(self.record.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise LucidError(
                f"{self.path} exists, but {self.record.name}, the record of its run, is missing. {way_out}"
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise LucidError(f"{self.record} cannot be read: {error}. {way_out}") from error
        if not isinstance(known, dict):
            raise LucidError(f"{self.record} is not the record of a run. {way_out}")
        differ = _differing(known, facts)
        if options := _differing(known.get("options"), facts.get("options")):
            differ[differ.index("options")] = f"options ({', '.join(options)})"
        if differ:
            raise LucidError(f"{self.path} was begun with other {', '.join(differ)}. {way_out}")

    def _resume(self, lines: set[int]) -> None:
        content = self.path.read_bytes()
        parts = content.split(b"\n")
        end = len(content) - len(parts.pop())  # what follows the last line end is an incomplete line
        for number, part in enumerate(parts, start=1):
            try:
                answer = json.loads(part)
                line = answer["line"]
                if type(line) is not int:
                    raise TypeError("the line number is not an integer")
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                if number == len(parts):  # a crash of the machine can leave a line of zero bytes
                    end -= len(part) + 1
                    break
                raise CheckFailed(
                    f"{self.path}, line {number} is not an answer: the file was changed or damaged. Restore it, or "
                    "start over with --overwrite."
                ) from error
            if line not in lines or line in self.answered:
                what = "twice" if line in self.answered else "that is not in the prompts"
                raise CheckFailed(
                    f"{self.path}, line {number} answers prompt {line!r} {what}: the file was changed. Restore it, or "
                    "start over with --overwrite."
                )
            self.answered.add(line)
            self.failed += answer.get("error") is not None
        os.ftruncate(self._handle, end)
        os.lseek(self._handle, end, os.SEEK_SET)
        os.fsync(self._handle)

    def _write_record(self, facts: dict[str, Any]) -> None:
        try:
            atomic_write(self.record, (json.dumps(facts, indent=2) + "\n").encode())
        except OSError as error:
            raise LucidError(f"{self.record} cannot be written: {error.strerror or error}.") from error


@dataclass
class _RunningAnswer:
    """An answer being generated; ``stream`` is None if there is no tokenizer."""

    prompt: Prompt
    prompt_tokens: int
    stream: AnswerText | None
    ids: list[int] = field(default_factory=list)
    text: str = ""

    def push(self, token: int) -> bool:
        """Add a token; return whether a stop string ends the answer."""
        self.ids.append(token)
        if self.stream is None:
            return False
        self.text += self.stream.push(token)
        return self.stream.stopped

    def finish(self, reason: str, error: str | None = None) -> dict[str, Any]:
        """Return the line to write."""
        if self.stream is not None:
            self.text += self.stream.finish()
            reason = "stop" if self.stream.stopped and error is None else reason
        return {
            "line": self.prompt.line,
            "id": self.prompt.id,
            "text": self.text if self.stream is not None else None,
            "ids": self.ids,
            "finish_reason": reason,
            "prompt_tokens": self.prompt_tokens,
            "error": error,
        }


@dataclass
class AnswerTokens:
    """Counts of the tokens in the answers that a run wrote.

    Attributes:
        generated: All tokens whose ids the answers list.
        accepted: How many of them were accepted drafts.
    """

    generated: int = 0
    accepted: int = 0


def answer_prompts(
    batcher: Batcher,
    prompts: list[Prompt],
    answers: AnswerFile,
    tokenizer: TextTokenizer | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AnswerTokens:
    """Answer the prompts that have no answer yet; write each answer when it is complete.

    Args:
        answers: Receives answers in the order in which they are completed; their field ``line`` names the prompt.
        tokenizer: For prompts and answers as text; None if prompts are token ids.
        progress: Called with (answers so far, total prompts), earlier runs included.

    Returns:
        Counts of the new answers' tokens, without tokens after a stop string.
    """
    todo = deque(prompt for prompt in prompts if prompt.line not in answers.answered)
    running: dict[int, _RunningAnswer] = {}
    tokens = AnswerTokens()
    while todo or running:
        while todo and batcher.waiting < batcher.rows:
            prompt = todo.popleft()
            request = prompt.request(tokenizer)
            stream = AnswerText(tokenizer, prompt.stop) if tokenizer is not None else None
            running[batcher.submit(request)] = _RunningAnswer(prompt, len(request.prompt_ids), stream)
        complete: list[dict[str, Any]] = []
        for event in batcher.step():
            answer = running.get(event.request)
            if answer is None:  # a stop string has already ended the answer
                continue
            if isinstance(event, Token):
                tokens.generated += 1
                tokens.accepted += event.drafted
            if isinstance(event, Finished):
                complete.append(answer.finish(event.reason, event.error))
            elif isinstance(event, Token) and answer.push(event.token):
                batcher.cancel(event.request)
                complete.append(answer.finish("stop"))
            else:
                continue
            del running[event.request]
        if complete:
            answers.write(complete)
        if progress is not None:
            progress(len(answers.answered), len(prompts))
    return tokens


def _differing(one: Any, other: Any) -> list[str]:
    """Return the keys whose values differ in two dictionaries; none if either is not a dictionary."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return []
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
