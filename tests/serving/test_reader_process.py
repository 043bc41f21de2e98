"""What a reader process answers; its limits are tested with processes, in test_readers.py."""

from __future__ import annotations

from typing import Any

import pytest

from lucid_deploy.serving.errors import ApiError
from lucid_deploy.serving.jobs import Job
from lucid_deploy.serving.reader_process import BodyPrepared, BodyRefused, ReadTask, answer
from lucid_deploy.serving.requests import Kind, PreparedRequest

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
def test_outcomes(outcome: Any, reply: Any) -> None:
    scripted: Any = Scripted(outcome)
    assert answer(scripted, ReadTask("chat", b"")) == reply
