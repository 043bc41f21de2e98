"""What TensorRT calls: progress never goes back, and no exception goes through its C++ code."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from lucid_deploy.runtimes.tensorrt.callbacks import (
    STEPS,
    CallbackFailure,
    Progress,
    explain,
    make_logger,
    make_monitor,
    without_collection,
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


def test_a_second_root_does_not_take_progress_back() -> None:
    seen: list[int] = []
    progress = Progress(lambda done, _: seen.append(done))
    progress.start("first", None, 2)
    progress.step("first", 0)
    progress.finish("first")
    progress.start("second", None, 0)  # TensorRT has phases of no steps
    progress.start("third", None, 10)
    for index in range(10):
        progress.step("third", index)
    assert seen == sorted(set(seen)) and seen[0] == 500 and seen[-1] == STEPS


def test_the_logger_collects_errors_only() -> None:
    failure = CallbackFailure()
    logger = make_logger(TRT, failure)
    logger.log(Interface.WARNING, "slow")
    logger.log(Interface.ERROR, " it fails\n")
    logger.log(Interface.ERROR, None)  # type: ignore[arg-type]
    assert logger.errors == ["it fails"] and isinstance(failure.error, AttributeError)


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


def test_handlers_of_signals_are_left_alone_in_other_threads() -> None:
    failure = CallbackFailure()

    def build() -> None:
        with failure.of_signals():
            seen.append(signal.getsignal(signal.SIGINT))

    seen: list[Any] = []
    thread = threading.Thread(target=build)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)] and failure.error is None


def test_a_build_that_reports_goes_on() -> None:
    seen: list[int] = []
    monitor = make_monitor(TRT, lambda done, _: seen.append(done), CallbackFailure())
    monitor.phase_start("build", None, 4)
    assert monitor.step_complete("build", 1) is True and seen == [500]


def test_the_telling_error_is_the_one_that_is_not_of_the_driver() -> None:
    driver = "no driver (cudaError 35)"
    assert explain([driver, "--- context", "the node is wrong", "later"]) == "the node is wrong"
    assert explain([driver]) == driver and explain([]) == "no reason given"


def test_the_parser_s_reason_comes_with_the_node_that_it_names() -> None:
    node = 'ModelImporter.cpp:140: While parsing node number 15 [DequantizeLinear -> "w"]:'
    frame = ["ModelImporter.cpp:142: --- Begin node ---\nNode name: w_node", "ModelImporter.cpp:143: --- End node ---"]
    reason = "ERROR: In function resolveScaleInput:\n[6] Assertion failed: Scale coefficients must all be positive"
    assert explain([node, *frame, reason, "after"]) == f"{node} {reason}".replace("\n", " ")
    assert explain([node, *frame]) == node and explain(["why", reason]) == "why"


def test_what_an_interruption_leaves_ends_without_a_search_for_garbage() -> None:
    """A builder that ends while another one is made waits for its lock, for good."""

    class Builder:
        pass

    def build() -> None:
        builder = Builder()
        seen.append(weakref.ref(builder))
        failure = CallbackFailure()
        failure.error = KeyboardInterrupt()
        failure.raise_again()

    seen: list[weakref.ref[Builder]] = []
    gc.disable()
    try:
        with contextlib.suppress(KeyboardInterrupt):
            build()
        assert seen[0]() is None
    finally:
        gc.enable()


def test_nobody_looks_for_garbage_while_tensorrt_calls() -> None:
    assert gc.isenabled()
    with without_collection():
        assert not gc.isenabled()
        with without_collection():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyboardInterrupt), without_collection():
        raise KeyboardInterrupt
    assert gc.isenabled()
