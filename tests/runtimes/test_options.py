"""Options of runtimes: what makes no sense is refused by its name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from lucid_deploy.cli.run import command as run_command
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes import RuntimeOptions
from lucid_deploy.runtimes.options import device_index, flag, is_device


@pytest.mark.parametrize(
    "options", [{"threads": 0}, {"threads": 1025}, {"provider": "rocm"}, {"kernels": "fast"}], ids=str
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(LucidError, match=r"must be 1 to 1024|not known; known are"):
        RuntimeOptions(**options)


def test_only_what_differs_from_the_defaults_is_given() -> None:
    assert RuntimeOptions().given() == {}
    given = RuntimeOptions("torch", threads=2, allow_extrapolation=True).given()
    assert given == {"runtime": "torch", "threads": 2, "allow_extrapolation": True}
    assert RuntimeOptions(**given) == RuntimeOptions("torch", threads=2, allow_extrapolation=True)


def test_a_flag_is_what_the_command_line_knows() -> None:
    known = {option for parameter in run_command.params for option in parameter.opts}
    assert {flag(item.name) for item in fields(RuntimeOptions)} <= known


@pytest.mark.parametrize(
    ("device", "kinds", "fits"),
    [
        ("cpu", ("cpu",), True),
        ("cpu", ("npu",), True),  # the default: a runtime's own first device
        ("cuda:1", ("cpu", "cuda"), True),
        ("cuda", ("cpu",), False),
        ("cpu:1", ("cpu",), False),
        ("cuda:", ("cuda",), False),
        ("cuda:x", ("cuda",), False),
        ("cuda:-1", ("cuda",), False),
    ],
)
def test_devices_are_a_kind_and_a_number(device: str, kinds: tuple[str, ...], fits: bool) -> None:
    assert is_device(device, kinds) == fits


def test_a_device_without_a_number_is_the_first() -> None:
    assert [device_index(device) for device in ("cpu", "cuda", "cuda:0", "cuda:12")] == [0, 0, 0, 12]
