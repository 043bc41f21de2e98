"""Sessions compute with one thread, unless a test asks for more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import onnxruntime
import pytest

from lucid_deploy.runtimes import open_session

GRAPH = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[2] x) => (float[2] y) { y = Identity(x) }
"""


@pytest.mark.parametrize(("asked", "threads"), [(None, 1), (0, 1), (1, 1), (2, 2)])
def test_threads_of_a_session(asked: int | None, threads: int) -> None:
    options = None
    if asked is not None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = asked
    session = onnxruntime.InferenceSession(onnx.parser.parse_model(GRAPH).SerializeToString(), options)
    assert session.get_session_options().intra_op_num_threads == threads


@pytest.mark.parametrize(("asked", "threads"), [({}, 1), ({"threads": 2}, 2)])
def test_threads_of_an_artifact(
    exported: Callable[..., Any], asked: dict[str, int], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []

    class Recording(onnxruntime.InferenceSession):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            opened.append(self.get_session_options().intra_op_num_threads)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Recording)
    open_session(exported()[1], "onnxruntime", kernels="functions", **asked)
    assert opened == [threads, threads]
