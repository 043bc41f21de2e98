"""OpenVINO's Core outlives every session, and with it the stack that it gives to signal handlers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.patience import PATIENCE

pytest.importorskip("openvino", reason="the extra openvino")

CLOSED_BY_ANOTHER_THREAD = """
import gc, signal, threading
import onnx
from lucid_deploy.runtimes import RuntimeOptions
from lucid_deploy.runtimes.openvino.graph import open_openvino_graph

text = "agraph (float[2, 3] x) => (float[2, 3] y) { y = Add(x, x) }"
graph = onnx.helper.make_model(onnx.parser.parse_graph(text), opset_imports=[onnx.helper.make_opsetid("", 21)])
opened = [open_openvino_graph(graph, RuntimeOptions("openvino", threads=1))]


def close():
    opened.clear()
    gc.collect()


closing = threading.Thread(target=close)
closing.start()
closing.join()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""


def test_a_signal_after_another_thread_has_closed_the_last_session() -> None:
    command = [sys.executable, "-c", CLOSED_BY_ANOTHER_THREAD]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
