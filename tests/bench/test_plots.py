"""Plots show the spread, say which way is better, and what a ratio is."""

from __future__ import annotations

import builtins
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.bench import Measurement, Plan
from lucid_deploy.bench.plots import plot
from lucid_deploy.bench.report import build_report
from lucid_deploy.errors import LucidError


def report(*names: str) -> dict[str, Any]:
    times = ((0.1, 0.2, 0.4), (0.2, 0.5, 0.5))
    seconds = dict(zip(names or ("ours", "theirs"), times, strict=True))
    measurements = [
        Measurement(name, "prefill", 1, length, tuple(length * value for value in seconds[name]), 2**20)
        for length in (1, 2)
        for name in seconds
    ]
    machine = {"processor": "a processor", "cores": 2}
    return build_report(measurements, {}, Plan((1, 2)), machine)


def test_what_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="pip install matplotlib")
    monkeypatch.setattr(pyplot, "close", figures.append)
    (path,) = plot(report(), tmp_path / "plots")
    assert path.name == "prefill.png" and path.read_bytes().startswith(b"\x89PNG")
    (figure,) = figures
    time, ratio, memory = figure.axes
    assert [axis.get_title() for axis in figure.axes] == [
        "time (lower is better)",
        "ratio of times (below 1 is faster)",
        "peak memory (lower is better)",
    ]
    bars = time.containers[0].lines[2][0].get_segments()  # of ours: from the fastest to the slowest round, in ms
    assert [float(end[1]) for bar in bars for end in bar] == pytest.approx([100, 400, 200, 800])
    bars = ratio.containers[1].lines[2][0].get_segments()  # of theirs, round by round over ours
    assert [float(end[1]) for bar in bars for end in bar] == pytest.approx([1.25, 2.5, 1.25, 2.5])
    assert "time over that of ours" in ratio.get_ylabel() and memory.get_ylabel() == "MiB"
    assert "medians of 3 interleaved rounds" in figure.get_supxlabel() and "against ours" in figure.get_supxlabel()


def test_a_plot_that_cannot_be_written_whole_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib.pyplot", reason="pip install matplotlib")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (path,) = plot(report(), tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        plot(report(), tmp_path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "matplotlib":
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(LucidError, match="matplotlib"):
        plot(report(), tmp_path)


def test_names_that_are_formulas_or_begin_with_an_underscore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder may be called anything: the first was an error of matplotlib's, the second missing from the legend."""
    figures: list[Any] = []
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="pip install matplotlib")
    monkeypatch.setattr(pyplot, "close", figures.append)
    names = (r"a$\frac{$", "_old")
    plot(report(*names), tmp_path)
    legend = figures[0].axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [f"{name}, batch 1" for name in names]
