"""When a figure is not to be trusted."""

from __future__ import annotations

import os

import pytest

from lucid_deploy.bench.machine import describe_machine, distrust, load_average


@pytest.mark.parametrize(
    ("load", "spreads", "said"),
    [
        (0.1, [0.02, 0.15], []),
        (None, [], []),
        (3.2, [0.1], ["the load average was 3.2 on 2 cores before it began"]),
        (0.9, [0.1, 0.5], ["rounds of one measurement differ by up to 50 %"]),
    ],
)
def test_reasons(load: float | None, spreads: list[float], said: list[str]) -> None:
    assert distrust(2, load, spreads) == said
    assert len(distrust(2, 5.0, [1.0])) == 2


def test_a_system_that_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (load_average() or 0.0) >= 0

    def fail() -> None:
        raise OSError

    monkeypatch.setattr(os, "getloadavg", fail)
    assert load_average() is None


def test_the_machine_is_described() -> None:
    facts = describe_machine()
    assert facts["cores"] >= 1 and facts["versions"]["torch"]
