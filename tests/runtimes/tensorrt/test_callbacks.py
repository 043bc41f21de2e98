"""What TensorRT calls: progress never goes back, and no exception goes through its C++ code."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from lucid_deploy.runtimes.tensorrt.callbacks import (
    STEPS,
    CallbackFailure,
    Progress,
    explain,
    make_monitor,
)


class Interface:
    """As TensorRT's classes that are derived from."""

    INTERNAL_ERROR, ERROR, WARNING = range(3)


TRT = SimpleNamespace(ILogger=Interface, IProgressMonitor=Interface)


def test_progress_of_nested_phases_grows_to_the_whole() -> None:
    seen: list[tuple[int, int]] = []
    progress = Progress(lambda *now: seen.append(now))
    progress.start("build", None, 2)
    for outer in range(2):
        progress.start("tactics", "build", 4)
        for inner in range(4):
            progress.step("tactics", inner)
        progress.finish("tactics")
        progress.step("build", outer)
    progress.step("unknown", 3)  # of a phase that nobody began
    assert [done for done, _ in seen] == [125, 250, 375, 500, 625, 750, 875, 1000]
    assert {total for _, total in seen} == {STEPS}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("report")], ids=repr)
def test_an_exception_stops_the_build_and_is_raised_once_by_the_caller(error: BaseException) -> None:
    def fail(*_: Any) -> None:
        raise error

    failure = CallbackFailure()
    monitor = make_monitor(TRT, fail, failure)
    monitor.phase_start("build", None, 2)
    assert monitor.step_complete("build", 0) is False
    monitor.phase_finish("build")
    with pytest.raises(type(error)) as caught:
        failure.raise_again()
    assert caught.value is error
    failure.raise_again()  # nothing is left


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_the_handler_of_a_signal_raises_stops_the_build(number: signal.Signals) -> None:
    """TensorRT's bindings, in which it would be raised, print it and go on."""

    def unwind(*_: Any) -> None:
        raise SystemExit(128 + number)

    failure, before = CallbackFailure(), signal.signal(number, unwind)
    try:
        with failure.of_signals():
            os.kill(os.getpid(), number)
            monitor = make_monitor(TRT, lambda *_: None, failure)
            assert monitor.step_complete("build", 0) is False
        assert signal.getsignal(number) is unwind
        with pytest.raises(SystemExit):
            failure.raise_again()
    finally:
        signal.signal(number, before)


def test_the_parser_s_reason_comes_with_the_node_that_it_names() -> None:
    node = 'ModelImporter.cpp:140: While parsing node number 15 [DequantizeLinear -> "w"]:'
    frame = ["ModelImporter.cpp:142: --- Begin node ---\nNode name: w_node", "ModelImporter.cpp:143: --- End node ---"]
    reason = "ERROR: In function resolveScaleInput:\n[6] Assertion failed: Scale coefficients must all be positive"
    assert explain([node, *frame, reason, "after"]) == f"{node} {reason}".replace("\n", " ")
    assert explain([node, *frame]) == node and explain(["why", reason]) == "why"
