"""What a reader process says; its bounds are tested with processes, in test_readers.py."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest

from lucid_deploy.serving.errors import ApiError
from lucid_deploy.serving.jobs import Job
from lucid_deploy.serving.reader_process import (
    BodyPrepared,
    BodyRefused,
    ReaderFault,
    ReaderReady,
    ReadTask,
    Reply,
    answer,
    read_frame,
    write_frame,
)
from lucid_deploy.serving.requests import Kind, PreparedRequest
from tests.serving.reader_tools import limits

PREPARED = PreparedRequest(Job(((1, 2),), stops=("é",)), stream=True, include_usage=False, chat=True, echo=("x",))


class Scripted:
    """A reader of which each body is an exception or a request."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome

    def read(self, _kind: Kind, _body: bytes) -> Any:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


@pytest.mark.parametrize(
    ("outcome", "reply"),
    [
        (PREPARED, BodyPrepared(PREPARED)),
        (ApiError(404, "m", "c", "p"), BodyRefused(404, "m", "c", "p")),
    ],
)
def test_outcomes(outcome: Any, reply: Reply) -> None:
    scripted: Any = Scripted(outcome)
    assert answer(scripted, ReadTask("chat", b""), limits()) == reply


def test_no_memory_is_the_client_s_fault_and_the_rest_ours() -> None:
    scripted: Any = Scripted(MemoryError())
    refused = answer(scripted, ReadTask("completion", b""), limits())
    assert isinstance(refused, BodyRefused) and (refused.status, refused.code) == (400, "too_costly")
    scripted = Scripted(ZeroDivisionError("here"))
    failed = answer(scripted, ReadTask("completion", b""), limits())
    assert isinstance(failed, ReaderFault) and "ZeroDivisionError: here" in failed.trace


@pytest.mark.parametrize(
    "reply", [ReaderReady(True), BodyPrepared(PREPARED), BodyRefused(400, "é", None, None), ReaderFault("trace")]
)
def test_frames(reply: Reply) -> None:
    pipe = io.BytesIO()
    write_frame(pipe, reply)
    write_frame(pipe, ReaderReady(True))
    pipe.seek(0)
    assert msgspec.msgpack.decode(read_frame(pipe), type=Reply) == reply
    assert msgspec.msgpack.decode(read_frame(pipe), type=Reply) == ReaderReady(True)
    assert read_frame(pipe) == b""
