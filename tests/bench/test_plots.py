"""Plots show the spread, say which way is better, and what a ratio is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.bench import Measurement, Plan
from lucid_deploy.bench.plots import plot
from lucid_deploy.bench.report import build_report


def report(*names: str, batches: tuple[int, ...] = (1,)) -> dict[str, Any]:
    times = ((0.1, 0.2, 0.4), (0.2, 0.5, 0.5))
    seconds = {name: times[min(i, 1)] for i, name in enumerate(names or ("ours", "theirs"))}
    measurements = [
        Measurement(name, "prefill", batch, length, tuple(length * value for value in seconds[name]), 2**20)
        for batch in batches
        for length in (1, 2)
        for name in seconds
    ]
    machine = {"processor": "a processor", "cores": 2}
    return build_report(measurements, {}, Plan((1, 2)), machine)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures that were drawn."""
    found: list[Any] = []
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="pip install matplotlib")
    monkeypatch.setattr(pyplot, "close", found.append)
    return found


def test_what_is_drawn(tmp_path: Path, figures: list[Any]) -> None:
    (path,) = plot(report(), tmp_path / "plots")
    assert path.name == "prefill.png" and path.read_bytes().startswith(b"\x89PNG")
    (figure,) = figures
    time, ratio, memory = figure.axes
    assert [axis.get_title() for axis in figure.axes] == [
        "time (lower is better)",
        "ratio (above 1 is slower than ours)",
        "peak memory (lower is better)",
    ]
    bars = time.containers[0].lines[2][0].get_segments()  # of ours: from the fastest to the slowest round, in ms
    assert [float(end[1]) for bar in bars for end in bar] == pytest.approx([100, 400, 200, 800])
    bars = ratio.containers[1].lines[2][0].get_segments()  # of theirs, round by round over ours
    assert [float(end[1]) for bar in bars for end in bar] == pytest.approx([1.25, 2.5, 1.25, 2.5])
    assert "time over that of ours" in ratio.get_ylabel() and memory.get_ylabel() == "MiB"
    assert (
        figure.get_suptitle() == "Prefill, 2 tokens, batch 1: theirs 2.00 times what ours takes; a processor, 2 cores"
    )
    assert "medians of 3 interleaved rounds" in figure.get_supxlabel() and "against ours" in figure.get_supxlabel()


def test_names_that_are_formulas_or_begin_with_an_underscore(tmp_path: Path, figures: list[Any]) -> None:
    """A folder may be called anything: the first was an error of matplotlib's, the second missing from a legend."""
    names = (r"a$\frac{$", "_old")
    plot(report(*names), tmp_path)
    assert [text.get_text() for text in figures[0].axes[0].texts] == [*names]
