"""Answers on the disk as they come, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from io import FileIO
from pathlib import Path
from typing import Any

from lucid_deploy.errors import LucidError


class AnswerLog:
    """A file with one answer a line, behind a line that says whose answers they are. One run at a time writes to it.

    A line that was cut off while it was written is left out. Writing goes through to the system after every answer.

    Attributes:
        found: How many answers were there when the file was opened.

    Args:
        path: The file; it is made if it is missing.
        owner: What determines the answers beside the requests: model, runtime, type, truncation.

    Raises:
        LucidError: It holds the answers of another owner, another run writes to it, or it cannot be read or written.
    """

    def __init__(self, path: Path, owner: dict[str, Any]) -> None:
        self._path, self._answers = path, dict[str, Any]()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
            # Without a buffer: what a full disk did not take is not written again when the file is closed.
            self._file = FileIO(handle, "r+")
            try:
                self._lock()
                self._begin(owner)
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise LucidError(f"The answers in {path} cannot be kept: {error.strerror or error}.") from error
        self.found = len(self._answers)

    def _lock(self) -> None:
        """Take the file for this run; the system lets go of it when the process ends."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LucidError(
                f"Another run writes its answers to {self._path}. Wait for it, or choose another --output-path."
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):  # a file system without locks
                raise

    def _begin(self, owner: dict[str, Any]) -> None:
        """Read the answers that are there, cut off half a line, and begin a new file with its owner."""
        *lines, _half = self._file.readall().split(b"\n")
        if lines:
            self._read(lines, owner)
        self._file.truncate(self._file.seek(sum(len(line) + 1 for line in lines)))
        if not lines:
            self._write({"owner": owner})

    def _read(self, lines: list[bytes], owner: dict[str, Any]) -> None:
        try:
            head, *rows = [json.loads(line) for line in lines]
            known = head["owner"]
            self._answers = {row["key"]: row["answer"] for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            raise LucidError(f"{self._path} is not a file of answers: {error!r}. Remove it to begin anew.") from error
        if known != owner:
            changed = sorted(name for name in {*known, *owner} if known.get(name) != owner.get(name))
            raise LucidError(
                f"{self._path} holds answers of another run: {', '.join(changed)} differ. Choose another "
                "--output-path, or remove the file to begin anew."
            )

    def get(self, kind: str, arguments: Any) -> Any:
        """Return the answer to a request as JSON has it; None if it is not there."""
        return self._answers.get(_key(kind, arguments))

    def add(self, kind: str, arguments: Any, answer: Any) -> None:
        """Keep an answer.

        Raises:
            LucidError: It cannot be written.
        """
        key = _key(kind, arguments)
        self._answers[key] = answer
        try:
            self._write({"key": key, "answer": answer})
        except OSError as error:
            raise LucidError(f"The answers in {self._path} cannot be kept: {error.strerror or error}.") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, row: dict[str, Any]) -> None:
        data = memoryview((json.dumps(row) + "\n").encode())
        while data:
            data = data[self._file.write(data) or 0 :]


def _key(kind: str, arguments: Any) -> str:
    return hashlib.sha256(json.dumps([kind, arguments], sort_keys=True).encode()).hexdigest()
