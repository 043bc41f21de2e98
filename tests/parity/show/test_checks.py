"""Checks, made or not."""

from lucid_deploy.parity.show.checks import Check, not_done, verdict_of


def test_a_check_that_was_not_made_says_why():
    check = not_done("weights", "they are not quantized")
    assert not check.done
    assert check.to_dict() == {
        "name": "weights",
        "outcome": "not done",
        "detail": "they are not quantized",
        "done": False,
    }


def test_a_check_that_was_made_passed_or_failed():
    assert Check("files", verdict_of(True), "").outcome == "passed"
    assert Check("files", verdict_of(False), "").outcome == "failed"
    assert Check("files", "failed", "").done
