"""A pytest plugin: onnxruntime computes with one thread unless a test asks for more, as PyTorch does here.

``make test`` has more workers than cores. A second thread for models of this size only waits for the first, by
spinning: with it a ``verify`` takes 1.7 times the processor time. Tests of what several threads compute ask for them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import onnxruntime
import pytest

from lucid_deploy.runtimes.onnxruntime.graph import release_arena


@pytest.fixture(scope="session", autouse=True)
def _one_core() -> Iterator[None]:
    opened = onnxruntime.InferenceSession.__init__

    @functools.wraps(opened)
    def init(self: Any, model: Any, sess_options: Any = None, *arguments: Any, **options: Any) -> None:
        settings = onnxruntime.SessionOptions() if sess_options is None else sess_options
        if settings.intra_op_num_threads == 0:  # onnxruntime's choice: as many as the machine has cores
            settings.intra_op_num_threads = 1
        opened(self, model, settings, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime.InferenceSession, "__init__", init)
        release_arena()  # its first call opens a session, which tests that count sessions would see
        yield
