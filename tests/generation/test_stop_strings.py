"""Stop strings in text that comes in pieces."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.generation.text_stream import StopStrings


@pytest.mark.parametrize(
    ("stops", "text", "shown", "stopped"),
    [
        ([], "anything", "anything", False),
        (["STOP"], "no end here ST", "no end here ST", False),
        (["STOP"], "one STOP two", "one ", True),
        (["STOP"], "SSTSTOSTOP!", "SSTSTO", True),
        (["aab"], "aaab", "a", True),
        (["abcd", "bc"], "xabcd", "xa", True),
        (["bc", "abc"], "xabc", "x", True),
        (["\n\n", "🦊"], "a\nb🦊c\n\n", "a\nb", True),
    ],
)
def test_stop_strings_in_pieces_of_any_size(stops: list[str], text: str, shown: str, stopped: bool) -> None:
    for size in range(1, len(text) + 1):
        matcher, out, found = StopStrings(stops), "", False
        for start in range(0, len(text), size):
            piece, found = matcher.push(text[start : start + size])
            out += piece
            assert shown.startswith(out)
            if found:
                break
        out += matcher.flush()
        assert (out, found, matcher.stopped) == (shown, stopped, stopped)


def test_text_is_held_back_no_longer_than_needed() -> None:
    matcher = StopStrings(["STOP"])
    assert [matcher.push(piece)[0] for piece in ("a S", "TO", "ST", "x")] == ["a ", "", "STO", "STx"]
    assert matcher.flush() == ""


def test_nothing_comes_after_a_stop_string() -> None:
    matcher = StopStrings(["."])
    assert [matcher.push(piece) for piece in ("a.b", "c")] == [("a", True), ("", True)]
    assert matcher.flush() == ""
    with pytest.raises(LucidError, match="empty"):
        StopStrings(["a", ""])


def test_random_text_against_a_plain_search() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        text = "".join(rng.choice(list("ab"), size=20))
        stops = ["".join(rng.choice(list("ab"), size=rng.integers(1, 6))) for _ in range(rng.integers(1, 4))]
        end = min((text[:n] for n in range(21) if text[:n].endswith(tuple(stops))), key=len, default=None)
        expected = text if end is None else end[: min(len(end) - len(s) for s in stops if end.endswith(s))]
        matcher, out = StopStrings(stops), ""
        for first, second in itertools.pairwise([0, *sorted(rng.integers(0, 21, 4).tolist()), 20]):
            out += matcher.push(text[first:second])[0]
        assert out + matcher.flush() == expected
