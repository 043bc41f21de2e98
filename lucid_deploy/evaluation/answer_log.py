"""Answers on the disk as they come, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import IO, Any

from lucid_deploy.errors import LucidError


class AnswerLog:
    """A file with one answer a line, behind a line that says whose answers they are.

    A line that was cut off while it was written is left out. Writing goes through to the system after every answer.

    Attributes:
        found: How many answers were there when the file was opened.

    Args:
        path: The file; it is made if it is missing.
        owner: What determines the answers beside the requests: model, runtime, type, truncation.

    Raises:
        LucidError: It holds the answers of another owner, or cannot be read or written.
    """

    def __init__(self, path: Path, owner: dict[str, Any]) -> None:
        self._path, self._answers = path, dict[str, Any]()
        try:
            lines = path.read_bytes().split(b"\n") if path.is_file() else []
            whole = b"\n".join(lines[:-1])
            if lines[:-1]:
                self._read(lines[:-1], owner)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[str] = path.open("r+" if whole else "w", encoding="utf-8")
            if whole:
                self._file.seek(len(whole) + 1)
                self._file.truncate()
            else:
                self._write({"owner": owner})
        except OSError as error:
            raise LucidError(f"The answers in {path} cannot be kept: {error.strerror or error}.") from error
        self.found = len(self._answers)

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
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()


def _key(kind: str, arguments: Any) -> str:
    return hashlib.sha256(json.dumps([kind, arguments], sort_keys=True).encode()).hexdigest()
