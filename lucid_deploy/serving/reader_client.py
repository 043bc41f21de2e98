"""A reader process for one user: chats become token ids there, within the same bounds as a server's requests."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import msgspec

from lucid_deploy.errors import LucidError
from lucid_deploy.serving.reader_process import (
    COMMAND,
    ENVIRONMENT,
    HEADER_BYTES,
    LAST_WORDS_SECONDS,
    BodyPrepared,
    BodyRefused,
    ReaderFault,
    ReaderReady,
    ReaderSetup,
    ReadTask,
    Reply,
    not_started,
    read_frame,
    refusal_of_death,
)


class ChatReader:
    """Renders chats and tokenizes them in a process of its own, which ends when time or memory are over.

    A template is a program that came with the model, and can loop or take all memory. Use it in a ``with``.

    Attributes:
        has_chat_template: Whether the model has chat templates.
        chat_refusal: Why none of them can be used here; None if one can.

    Args:
        setup: What it reads for.

    Raises:
        LucidError: The tokenizer or the chat template cannot be read, or the process does not start.
    """

    def __init__(self, setup: ReaderSetup) -> None:
        self._setup = setup
        self._start()

    def __enter__(self) -> ChatReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def token_ids(self, messages: list[dict[str, Any]]) -> list[int]:
        """Return the token ids of a chat, with the opening of the model's answer.

        Args:
            messages: As ``/v1/chat/completions`` takes them.

        Raises:
            LucidError: The template refuses them, they are too long, or reading them is too costly.
        """
        if self._process.poll() is not None:
            self._start()
        body = json.dumps({"model": self._setup.model, "messages": messages}).encode()
        reply = self._ask(ReadTask("chat", body)) or refusal_of_death(self._process.wait(), self._setup.limits)
        if isinstance(reply, BodyPrepared):
            return list(reply.request.job.prompts[0])
        raise LucidError(reply.message if isinstance(reply, BodyRefused) else _fault(reply))

    def _start(self) -> None:
        pipe = subprocess.PIPE
        self._process = process = subprocess.Popen(
            COMMAND, stdin=pipe, stdout=pipe, stderr=pipe, env={**os.environ, **ENVIRONMENT}
        )
        try:
            if (reply := self._ask(self._setup)) is None:
                raise not_started(process.wait(), _last_words(process))
            if not isinstance(reply, ReaderReady):
                raise LucidError(reply.message if isinstance(reply, BodyRefused) else _fault(reply))
        except BaseException:  # Ctrl-C too
            self._stop()
            raise
        self.has_chat_template, self.chat_refusal = reply.has_chat_template, reply.chat_refusal

    def _stop(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _ask(self, message: msgspec.Struct) -> Reply | None:
        """Return the process's reply; None if it has ended."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        data = msgspec.msgpack.encode(message)
        try:
            process.stdin.write(len(data).to_bytes(HEADER_BYTES, "big") + data)
            process.stdin.flush()
        except BrokenPipeError:
            return None
        frame = read_frame(process.stdout)
        return msgspec.msgpack.decode(frame, type=Reply) if frame else None


def _last_words(process: subprocess.Popen[bytes]) -> bytes:
    """Return what an ended process wrote to stderr; nothing where another process keeps the pipe open."""
    try:
        return process.communicate(timeout=LAST_WORDS_SECONDS)[1]
    except subprocess.TimeoutExpired:
        return b""


def _fault(reply: Reply) -> str:
    trace = reply.trace if isinstance(reply, ReaderFault) else str(reply)
    return f"Reading the chat failed by a fault of lucid-deploy:\n{trace}"
