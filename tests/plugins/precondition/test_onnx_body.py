"""The ONNX body in onnxruntime, against the float64 reference."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from lucid_deploy.plugins.precondition.torch_operator import precondition
from lucid_deploy.plugins.table import PRECONDITION
from tests.plugins.onnx_bodies import error, inputs, run, single_operator


@pytest.fixture(scope="module", params=["float32", "float16"])
def of_type(request: pytest.FixtureRequest):
    return request.param, single_operator(PRECONDITION, request.param)


# Rows are solved in blocks of 32, 64 or 128; E comes in tiles of 512 columns, rows in outer blocks of 1024.
@pytest.mark.parametrize(
    ("n", "past", "correlation", "padded"),
    [
        (1, 0, 0.9, False),
        (1, 1, 0.9, True),
        (33, 5, 0.99, True),
        (64, 0, 1.0, False),
        (65, 100, 0.9, True),
        (129, 1, 0.99, False),
        (257, 40, 1.0, True),
        (40, 513, 0.9, False),  # a past over the edge of a tile
        (1060, 1030, 0.9, True),  # past and new rows over edges of outer blocks, whose columns cross tiles
        (1030, 0, 0.99, False),
    ],
)
def test_precondition(of_type, n: int, past: int, correlation: float, padded: bool) -> None:
    dtype, session = of_type
    _, k, v, mask = inputs(past + n, correlation, padded, dtype)
    y_past = precondition(k.double(), v.double(), mask=mask, implementation="reference")[:, :, :past].to(k.dtype)
    new = (k[:, :, past:], v[:, :, past:], k[:, :, :past], y_past)
    exact = precondition(*(x.double() for x in new), mask, implementation="reference")
    baseline = error(precondition(*new, mask, implementation="reference"), exact)
    (y,) = run(session, **dict(zip(("K", "V", "K_past", "Y_past"), new, strict=True)), mask=mask)
    # 3: the bound the project sets itself; the floor is one rounding of the output
    assert error(y, exact) <= 3 * baseline + torch.finfo(k.dtype).eps / 2


def test_memory_is_linear_in_the_tokens() -> None:
    """Memory grows with the tokens, not with their square: peak of one run at 4096 tokens, in a fresh process."""
    code = textwrap.dedent(
        """
        import resource, sys
        sys.path.insert(0, sys.argv[1])
        import numpy as np
        from lucid_deploy.plugins.table import PRECONDITION
        from tests.plugins.onnx_bodies import single_operator
        session = single_operator(PRECONDITION)
        x, past = np.ones((1, 4, 4096, 8), np.float32), np.ones((1, 4, 0, 8), np.float32)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        session.run(None, dict(K=x, V=x, K_past=past, Y_past=past, mask=np.ones((1, 4096), bool)))
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parents[3])], capture_output=True, text=True, check=True
    )
    whole_matrix = 4 * 4096 * 4096 * 4 / 2**20  # MiB: 256
    assert float(done.stdout) < whole_matrix / 4
