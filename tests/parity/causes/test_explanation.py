"""What an explanation says."""

import json

import pytest

from lucid_deploy.parity.causes.explanation import Explanation
from lucid_deploy.parity.causes.localise import Part, WorstOwnError
from lucid_deploy.parity.measure.gate import Gate


def finding(layer, kind, failed=False, gate=1e-3):
    return WorstOwnError(
        "random", Part(layer, kind, 3), "decode", 7, 0.5 if failed else 1e-5, Gate(gate, gate / 4), failed
    )


def test_the_origin_is_the_first_part_that_is_wrong_by_itself():
    found = Explanation(("random",), (finding(2, 0, True), finding(1, 1, True), finding(0, 0)), hint="V is wrong.")
    assert str(found.origin.part) == "layer 1 Y"
    sentence = found.sentence(failed=True)
    assert sentence.startswith("The error starts in layer 1 Y") and sentence.endswith("V is wrong.")
    assert found.sentence(failed=False).startswith("The error would start in layer 1 Y")


def test_without_an_origin_the_connections_are_suspected():
    found = Explanation(("random",), (finding(0, 0), finding(0, 1)))
    assert "what connects calls" in found.sentence(failed=True)
    assert "could be judged" not in found.sentence(failed=True)
    assert found.sentence(failed=False) == ""


def test_parts_that_could_not_be_judged_are_not_said_to_be_right():
    found = Explanation(("random",), (finding(0, 0), finding(1, 1, gate=2.0)))
    assert "every part that could be judged (1 of 2) stays" in found.sentence(failed=True)


@pytest.mark.parametrize("reason", [None, "It is one piece."])
def test_nothing_is_said_about_layers_that_were_not_looked_at(reason):
    assert Explanation((), unavailable=reason).sentence(failed=True) == (reason or "")


def test_it_is_plain_data():
    found = Explanation(("random",), (finding(0, 0, True),))
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["origin"]["part"] == "layer 0 K"
    assert data["own_errors"][0]["judged"] is True and data["own_errors"][0]["passed"] is False
