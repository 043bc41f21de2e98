"""Phases on stderr: lines for a log, a bar for a terminal."""

import io

import pytest
from rich.console import Console

from lucid_deploy.cli._phases import INTERVAL, PhaseLines, shown_phases, words
from lucid_deploy.parity.measure.plan import VerificationProgress


def console(terminal=False):
    return Console(file=io.StringIO(), force_terminal=terminal, width=120)


def step(phase="PyTorch in float64: the reference", index=2, done=0, left=130.0):
    return VerificationProgress(phase, index, 6, done, 1160, left)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_line_for_each_phase_and_every_ten_seconds(monkeypatch):
    monkeypatch.setattr("lucid_deploy.cli._phases.INTERVAL", INTERVAL)
    out, clock = console(), Clock()
    lines = PhaseLines(out, clock)
    for second in range(25):
        clock.now = float(second)
        lines.update(step(done=second * 10))
    lines.update(step("Conditioning of the solves", 3, left=4.0))
    assert out.file.getvalue().splitlines() == [
        "Phase 2 of 6: PyTorch in float64: the reference; about 2 min left in all",
        "Phase 2 of 6: PyTorch in float64: the reference, 100 of 1,160; about 2 min left in all",
        "Phase 2 of 6: PyTorch in float64: the reference, 200 of 1,160; about 2 min left in all",
        "Phase 3 of 6: Conditioning of the solves; a few seconds left in all",
    ]
    assert INTERVAL == 10


def test_without_a_terminal_lines_are_written():
    out = console()
    with shown_phases(out) as update:
        update(step())
        update(step(done=1))
    assert len(out.file.getvalue().splitlines()) == 1


def test_on_a_terminal_a_bar_is_shown():
    out = console(terminal=True)
    with shown_phases(out) as update:
        update(step(done=580))
    assert "Phase 2 of 6" in out.file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "a few seconds"),
        (9.9, "a few seconds"),
        (10, "about 10 s"),
        (44, "about 40 s"),
        (99, "about 100 s"),
        (100, "about 2 min"),
        (660, "about 11 min"),
        (5399, "about 90 min"),
        (7200, "about 2.0 h"),
    ],
)
def test_an_estimate_claims_no_more_than_it_knows(seconds, text):
    assert words(seconds) == text
