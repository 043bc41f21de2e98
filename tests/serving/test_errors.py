"""The shape of errors."""

from __future__ import annotations

import pytest

from lucid_deploy.serving.errors import ApiError, invalid, no_such_model, queue_full, timed_out, unavailable


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (invalid("m", "field", "code"), 400, "invalid_request_error"),
        (no_such_model("a", "b"), 404, "invalid_request_error"),
        (queue_full(7), 429, "rate_limit_error"),
        (ApiError(500, "m"), 500, "server_error"),
        (unavailable("m", "loading"), 503, "server_error"),
        (timed_out(3), 504, "server_error"),
    ],
)
def test_kinds_follow_the_status(error: ApiError, status: int, kind: str) -> None:
    body = error.body()["error"]
    assert (error.status, body["type"]) == (status, kind)
    assert set(body) == {"message", "type", "param", "code"}


def test_what_clients_act_on() -> None:
    assert queue_full(7).headers == {"Retry-After": "7"}
    assert no_such_model('x"\n', "y").body()["error"]["message"] == (
        'The model "x"?" does not exist here; this server has "y".'
    )
    assert invalid("m", "messages[0].role").param == "messages[0].role"
