"""Threads are as many as this process may use, by its affinity and its control groups."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.processors import allowed_threads, processor_quota, usable_cores

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="affinity and control groups are Linux's")
Machine = Callable[[int, set[int]], Path]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a function that fakes a machine: its processors, two a core, and those that this process may use."""

    def make(processors: int, allowed: set[int]) -> Path:
        monkeypatch.setattr(os, "cpu_count", lambda: processors)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed)
        half = processors // 2
        for number in range(processors):
            write(
                tmp_path / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list",
                f"{number % half},{number % half + half}\n",
            )
        return tmp_path

    return make


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("allowed", "cores"),
    [(set(range(64)), None), (set(range(32)), 32), ({3, 35}, 1), ({3, 4, 35}, 2), ({7}, 1)],
    ids=["all", "one a core", "one core", "two cores", "one"],
)
def test_affinity_limits_threads(machine: Machine, allowed: set[int], cores: int | None) -> None:
    root = machine(64, allowed)
    assert (allowed_threads(root), usable_cores(root)) == (cores, cores or 32)


@pytest.mark.parametrize(
    ("text", "threads"),
    [
        ("max 100000", None),
        ("6400000 100000", None),
        ("3200000 100000", None),  # all cores
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("140000 100000", 1),
        ("10000 100000", 1),
        ("", None),
        ("garbage", None),
        ("5 0", None),
    ],
)
def test_a_quota_limits_threads(machine: Machine, text: str, threads: int | None) -> None:
    root = machine(64, set(range(64)))
    write(root / "sys/fs/cgroup/cpu.max", text)
    assert (allowed_threads(root), usable_cores(root)) == (threads, threads or 32)


def test_the_smaller_of_affinity_and_quota_counts(machine: Machine) -> None:
    root = machine(64, set(range(4)))
    write(root / "sys/fs/cgroup/cpu.max", "800000 100000")
    assert (allowed_threads(root), processor_quota(root)) == (4, 8)
    write(root / "sys/fs/cgroup/cpu.max", "300000 100000")
    assert allowed_threads(root) == 3


def test_quotas_of_enclosing_groups_count(machine: Machine) -> None:
    root = machine(64, set(range(64)))
    write(root / "proc/self/cgroup", "0::/pods/burstable/one\n")
    for name, text in (
        ("pods/burstable/one", "max 100000"),
        ("pods", "400000 100000"),
        ("pods/other", "100000 100000"),
    ):
        write(root / "sys/fs/cgroup" / name / "cpu.max", text)
    assert processor_quota(root) == 4


def test_other_systems_have_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert (allowed_threads(), usable_cores()) == (None, 12)


SESSION = """
import json, os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from lucid_deploy.ort import import_onnxruntime
from lucid_deploy.runtimes import open_session

import_onnxruntime()
before = set(os.listdir("/proc/self/task"))
session = open_session(sys.argv[1])
started = set(os.listdir("/proc/self/task")) - before
print(json.dumps([sorted(os.sched_getaffinity(int(task))) for task in started]))
"""


def test_a_session_starts_no_thread_on_other_cores(demo: Callable[..., Artifact]) -> None:
    """onnxruntime would start a thread for each core of the machine, bound to one that this process may not have."""
    found = subprocess.run(
        [sys.executable, "-c", SESSION, str(demo().directory)], capture_output=True, text=True, check=True
    )
    assert json.loads(found.stdout) == []
