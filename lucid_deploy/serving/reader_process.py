"""The worker process that reads requests: JSON, chat template and tokenizer, within limits on time and memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from lucid_deploy.artifact.chat import load_chat_templates
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.bounded_process import BoundedProcess, Bounds, bound_memory, serve
from lucid_deploy.serving.errors import ApiError
from lucid_deploy.serving.limits import Limits
from lucid_deploy.serving.requests import Kind, PreparedRequest, RequestReader

WHAT = "Reading this request (parsing, chat template, tokenizing)"


class ReaderSetup(msgspec.Struct, frozen=True):
    """What the process reads requests for."""

    directory: str
    model: str
    limits: Limits


class ReadTask(msgspec.Struct, frozen=True):
    """A body, and the kind of request that it is."""

    kind: Kind
    body: bytes


class BodyPrepared(msgspec.Struct, frozen=True, tag="prepared"):
    """The answer to a body that can be run."""

    request: PreparedRequest


class BodyRefused(msgspec.Struct, frozen=True, tag="refused"):
    """The answer to a body that is wrong."""

    status: int
    message: str
    code: str | None
    param: str | None


def reader_process(setup: ReaderSetup) -> BoundedProcess:
    """Return a process that reads for a setup, not started; its ``ready`` says whether it can read chats."""
    limits = setup.limits
    bounds = Bounds(limits.reading_seconds, limits.reading_bytes)
    return BoundedProcess(__name__, msgspec.msgpack.encode(setup), bounds, WHAT)


def answer(reader: RequestReader, task: ReadTask) -> BodyPrepared | BodyRefused:
    """Read one body."""
    try:
        return BodyPrepared(reader.read(task.kind, task.body))
    except ApiError as error:
        return BodyRefused(error.status, error.message, error.code, error.param)


def main() -> None:
    """Read bodies until stdin ends."""

    def open_worker(data: bytes, bounds: Bounds) -> tuple[bytes, Callable[[bytes], bytes]]:
        setup = msgspec.msgpack.decode(data, type=ReaderSetup)
        directory = Path(setup.directory)
        tokenizer = TextTokenizer(directory, bound_time=False)
        bound_memory(bounds.memory)  # before the template: compiling it evaluates its constants
        reader = RequestReader(setup.model, setup.limits, tokenizer, load_chat_templates(directory))

        def handle(frame: bytes) -> bytes:
            return msgspec.msgpack.encode(answer(reader, msgspec.msgpack.decode(frame, type=ReadTask)))

        return msgspec.msgpack.encode(reader.can_chat), handle

    serve(open_worker)


if __name__ == "__main__":
    main()
