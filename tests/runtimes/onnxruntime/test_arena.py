"""Graphs on the CPU take memory from one place, and closing gives it back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.runtimes import open_session

MIB = 64  # of a tensor

# Two sessions with a result of 64 MiB each, one after the other; what the process holds in between, in MiB.
RUNS = """
import json, sys
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper
from lucid_deploy.bench.machine import resident_bytes
from lucid_deploy.runtimes.onnxruntime.arena import release_arena, use_arena

def opened():
    options = ort.SessionOptions()
    if {shared}:
        use_arena(options)
    numbers = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", numbers[:1], numbers[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

sessions, x = [opened(), opened()], np.ones(({mib} << 20) // 4, np.float32)
held = []
def hold():
    held.append((resident_bytes("VmRSS") >> 20))
hold()
for session in sessions:
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    assert (binding.get_outputs()[0].numpy()[:: 1 << 18] == -1).all()
    del binding
    hold()
kept = sessions[0].run(None, {{"x": x[:5]}})
release_arena()
hold()
assert (kept[0] == -1).all()
print(json.dumps(held))
"""


def held(shared: bool) -> list[int]:
    code = RUNS.format(shared=shared, mib=MIB)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.strip("[]\n").split(",")]


def test_what_one_graph_has_left_another_takes() -> None:
    before, first, second, released = held(shared=True)
    assert first - before >= MIB
    assert second - first < MIB // 4
    assert released - before < MIB // 4
    before, first, second, released = held(shared=False)  # as onnxruntime does by itself
    assert second - first >= MIB
    assert released - before >= 2 * MIB


@pytest.mark.parametrize("cache", ["growing", "static"])
def test_both_graphs_of_an_artifact_have_it(
    cache: str, exported: Callable[..., tuple[Path, Artifact]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    opened = onnxruntime.InferenceSession.__init__

    def init(self: object, model: object, options: onnxruntime.SessionOptions, **others: object) -> None:
        seen.append(options.get_session_config_entry("session.use_env_allocators"))
        opened(self, model, options, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(onnxruntime.InferenceSession, "__init__", init)
    session = open_session(exported(cache=cache)[1])
    session.prepare_several()
    assert [each for each in seen if each] == ["1"] * len(seen) and len(seen) >= 3
    cache_of_one = session.empty_cache(1)
    session.prefill(np.array([[5, 9, 5]]), cache_of_one)
    session.release_memory()
    assert session.prefill(np.array([[7]]), session.fork(cache_of_one)).shape[:2] == (1, 1), "it goes on"
    session.close()
    assert [layer.shape[2] for layer in session.layer_arrays(cache_of_one)[0]] == [3, 3], "caches outlive it"
