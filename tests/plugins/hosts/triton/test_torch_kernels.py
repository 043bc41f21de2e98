"""When PyTorch's operators run the kernels, and a whole model on the kernels, interpreted on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import lucid_deploy.model.lucid  # what a session imports puts the kernels in place
import lucid_deploy.plugins.causal_attention.torch_operator  # noqa: F401 (registers its operator)
from lucid_deploy.plugins.hosts.triton import torch_kernels
from lucid_deploy.plugins.hosts.triton.torch_kernels import unsupported_reason
from lucid_deploy.plugins.table import CAUSAL_ATTENTION, DECODE_ATTENTION, DELTA_RULE, PRECONDITION, Operator
from tests.plugins.hosts.triton.model_runs import CHUNK, PROMPT, STEPS, check_operators, run_model

LAYERS = 2
# Both paths share a model's other roundings, which in half types outweigh those of an operator: 0.92 to 1.03 was seen.
# In float32 exp and rsqrt of NumPy and PyTorch also differ from processor to processor, see kernel_cases.
FACTOR = {"float32": 2.0, "float16": 1.1, "bfloat16": 1.1}


def check_model(result: dict[str, Any], factor: float) -> None:
    """Check which kernels were launched how often, and that errors are those of PyTorch's versions."""
    chunks = len(range(0, PROMPT, CHUNK))
    launched = dict(result["launched"])
    [keys] = [name for name in launched if name in ("key_norms_kernel", "key_tiles_kernel")]  # as the device has it
    assert launched == {
        keys: LAYERS * chunks,
        "precondition_kernel": LAYERS * chunks,
        "decode_split_kernel": LAYERS * (STEPS + 1),
        "decode_combine_kernel": LAYERS * STEPS,
        "verify_combine_kernel": LAYERS,
    }
    assert set(result["errors"]) == {"logits", "k0", "y0", "k1", "y1"}
    for name, (error, plain) in result["errors"].items():
        assert error <= factor * plain, f"{name}: {error:.2e} against {plain:.2e}"


@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_a_model_on_the_kernels_is_as_exact_as_on_pytorchs_versions(dtype, make_checkpoint, interpret):
    check_model(interpret(run_model, make_checkpoint(), dtype), FACTOR[dtype])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_model_on_a_gpu(dtype, make_checkpoint):
    # A GPU's own exp2 and rsqrt are exact to two units in the last place, PyTorch's to one.
    check_model(run_model(make_checkpoint(), dtype, "cuda"), 2 * FACTOR[dtype])


def test_standard_attention_and_unsupported_widths_launch_no_kernel(make_checkpoint, interpret):
    for changes in ({"attention_type": "llama"}, {"head_dim": 8}):
        result = interpret(run_model, make_checkpoint(f"head{len(changes)}{changes}", **changes), "float32")
        assert result["launched"] == {}
        assert all(error == plain for error, plain in result["errors"].values())


@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_opcheck_passes_with_the_kernels(dtype, interpret):
    assert interpret(check_operators, dtype)


@pytest.mark.parametrize(
    "operator", [PRECONDITION, DECODE_ATTENTION, DELTA_RULE, CAUSAL_ATTENTION], ids=lambda each: each.name
)
def test_kernels_are_registered_for_cuda(operator: Operator) -> None:
    registered = torch._C._dispatch_has_kernel_for_dispatch_key(operator.torch_name, "CUDA")
    assert registered == (operator is not CAUSAL_ATTENTION)
    # On the CPU it is PyTorch's version for all of them, which needs no interpreter: see custom_operator.
    assert torch._C._dispatch_has_kernel_for_dispatch_key(operator.torch_name, "CPU")


@pytest.fixture
def device() -> Iterator[None]:
    """Clear the cached answer about the GPU, which a test replaces."""
    torch_kernels.device_unsupported_reason.cache_clear()
    yield
    torch_kernels.device_unsupported_reason.cache_clear()


def gpu_tensor(dtype: torch.dtype = torch.float16, width: int = 64, tokens: int = 3) -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(1, 2, tokens, width, dtype=dtype, device="cuda")


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ((gpu_tensor(torch.float64),), "one of float32, float16, bfloat16, not float64"),
        ((gpu_tensor(), gpu_tensor(torch.float32)), "not float16 and float32"),
        ((gpu_tensor(width=15),), "head widths of 16 to 256, not 15"),
        ((gpu_tensor(width=260),), "head widths of 16 to 256, not 260"),
        ((gpu_tensor(tokens=0),), "nothing to compute"),
    ],
)
def test_tensors_that_no_kernel_supports(tensors, reason):
    assert reason in unsupported_reason(*tensors)
