"""Custom operators: the kernel on the CPU, one that takes its place, and no compiler where nothing is compiled."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from lucid_deploy.plugins.shared.custom_operator import custom_operator

RUN = """
import sys
import numpy as np
import torch
from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.runtimes.torch.session import TorchSession
session = TorchSession(load_model("demo", torch.float64))
cache = session.empty_cache()
session.prefill(np.ones((1, 9), dtype=np.int64), cache)
session.decode(np.ones((1, 1), dtype=np.int64), cache)
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""


def test_a_model_that_is_loaded_and_run_brings_no_compiler() -> None:
    found = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.filterwarnings("ignore:Warning only once for all operators")
def test_the_function_is_the_kernel_until_another_is_registered() -> None:
    @custom_operator("lucid_tests::scaled")
    def scaled(x: torch.Tensor, factor: float) -> torch.Tensor:
        return x * factor

    @scaled.register_fake
    def _shape(x: torch.Tensor, factor: float) -> torch.Tensor:
        return x.new_empty(x.shape)

    x = torch.arange(3.0)
    assert torch.equal(scaled(x, 2.0), x * 2)
    torch.library.opcheck(scaled, (x, 2.0))
    assert scaled(x.to("meta"), 2.0).is_meta
    scaled.register_kernel("cpu", lambda x, factor: x + factor)
    assert torch.equal(scaled(x, 2.0), x + 2)
    with scaled.set_kernel_enabled("cpu", enabled=False):
        assert torch.equal(scaled(x, 2.0), x * 2)
