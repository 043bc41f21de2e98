"""The machine's description beside a benchmark's numbers, and the process's memory."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import mmap
import resource
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lucid_deploy.bench.machine import (
    copy_bandwidth,
    describe_machine,
    distrust,
    reset_peak,
    resident_bytes,
)
from lucid_deploy.errors import LucidError


def test_the_description_has_versions_memory_and_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lucid_deploy.bench.machine.usable_cores", lambda: 3)
    facts = json.loads(json.dumps(describe_machine()))
    for name in ("torch", "onnx", "onnxruntime", "numpy"):
        assert facts["versions"][name] == importlib.metadata.version(name)
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    assert abs(facts["memory_bytes"] - 1024 * int(total.split()[1])) <= 1 << 20
    assert facts["cores"] == 3 and facts["processor"] and facts["system"]
    monkeypatch.setattr("lucid_deploy.bench.machine.time", SimpleNamespace(perf_counter=itertools.count().__next__))
    assert copy_bandwidth(size=3 << 10, repeats=2) == 2 * (3 << 10)  # read and written, within a second
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_machine()["commit"] == "not a git checkout"


@pytest.mark.parametrize(
    ("load", "spreads", "reasons"),
    [
        (0.1, [0.02, 0.15], []),
        (None, [], []),
        (3.2, [0.1], ["the load average was 3.2 on 2 cores before it began"]),
        (0.9, [0.1, 0.5], ["rounds of one measurement differ by up to 50 %"]),
    ],
)
def test_a_busy_or_unsteady_machine_is_distrusted(load: float | None, spreads: list[float], reasons: list[str]) -> None:
    assert distrust(2, load, spreads) == reasons
    assert len(distrust(2, 5.0, [1.0])) == 2


def test_memory_is_what_the_kernel_reports() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    assert abs(resident_bytes("VmRSS") - pages * resource.getpagesize()) < 1 << 24 < resident_bytes("VmHWM")
    with pytest.raises(LucidError, match="has no VmNothing; memory is measured on Linux only"):
        resident_bytes("VmNothing")
    size = 1 << 27
    with mmap.mmap(-1, size) as block:  # mapped directly: malloc may keep freed memory
        np.frombuffer(block, np.uint8)[:] = 1
    peak = resident_bytes("VmHWM")
    reset_peak()
    assert resident_bytes("VmHWM") < peak - size // 2
