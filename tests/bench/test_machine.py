"""What is written beside a benchmark's numbers is what this machine says of itself."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
from pathlib import Path

import pytest

from lucid_deploy.bench.machine import copy_bandwidth, describe_machine, distrust, load_average


def test_versions_and_memory_are_those_that_others_read() -> None:
    facts = json.loads(json.dumps(describe_machine()))
    for name in ("torch", "onnx", "onnxruntime", "numpy"):
        assert facts["versions"][name] == importlib.metadata.version(name)
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    assert abs(facts["memory_bytes"] - 1024 * int(total.split()[1])) <= 1 << 20
    assert facts["cores"] >= 1 and facts["processor"] and facts["system"]


def test_the_commit_is_gits() -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    if head.returncode:
        pytest.skip("not a git checkout")
    assert head.stdout.startswith(describe_machine()["commit"].removesuffix("-dirty"))


def test_without_git_that_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_machine()["commit"] == "not a git checkout"


def test_copying_twice_the_bytes_is_no_faster_than_memory_can_be() -> None:
    assert 10**6 < copy_bandwidth(size=1 << 20, repeats=2) < 10**14  # bytes a second


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


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's quota is how much of a machine there was to measure."""
    monkeypatch.setattr("lucid_deploy.bench.machine.usable_cores", lambda: 3)
    assert describe_machine()["cores"] == 3
