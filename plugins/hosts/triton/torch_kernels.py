"""Register Triton kernels for CUDA tensors on import: for the preconditioner, decode attention and the delta rule.

PyTorch still computes the implementation ``reference``, and calls that the kernels do not support: those with an
:func:`unsupported_reason`, more than MOST_NEW new tokens in decode attention, or log_decay or state not in float32.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings

import torch
from torch import Tensor

from lucid_deploy.errors import spelled_out
from lucid_deploy.plugins.decode_attention import torch_operator as decode
from lucid_deploy.plugins.decode_attention.plan import MOST_NEW
from lucid_deploy.plugins.delta_rule import torch_operator as delta
from lucid_deploy.plugins.hosts.triton import launch
from lucid_deploy.plugins.precondition import torch_operator as solve
from lucid_deploy.plugins.precondition.plan import TUNED
from lucid_deploy.plugins.shared.plan import MAX_WIDTH, MIN_WIDTH, architectures
from lucid_deploy.plugins.table import FLOATS


def use_kernels(device_type: str = "cuda") -> None:
    """Register the kernels for a device type; ``cpu`` is for Triton's interpreter."""
    solve.precondition_operator.register_kernel(device_type, _precondition)
    decode.decode_attention_operator.register_kernel(device_type, _decode_attention)
    delta.delta_rule_operator.register_kernel(device_type, _delta_rule)


def unsupported_reason(*tensors: Tensor) -> str | None:
    """Return why the kernels do not support tensors, the first of which is ``(B, H, T, D)``; None if they do."""
    first = tensors[0]
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors}
    if len(kinds) > 1 or not kinds <= set(FLOATS):
        return f"the kernels take one of {', '.join(FLOATS)}, not {' and '.join(sorted(kinds))}"
    if not MIN_WIDTH <= first.shape[3] <= MAX_WIDTH:
        return f"the kernels take head widths of {MIN_WIDTH} to {MAX_WIDTH}, not {first.shape[3]}"
    if first.numel() == 0:
        return "there is nothing to compute"
    return device_unsupported_reason(first.device) if first.device.type == "cuda" else None


@functools.cache
def device_unsupported_reason(device: torch.device) -> str | None:
    """Return why the kernels cannot run on a device; None if they can. Warns once per device if Triton is missing."""
    if importlib.util.find_spec("triton") is None:
        line = spelled_out('pip install "lucid-deploy[kernels]"')
        reason = f"Triton is not installed; {line} installs it on Linux"
        warnings.warn(f"PyTorch computes LUCID's operators on {device}, which is slower: {reason}.", stacklevel=2)
        return reason
    if torch.version.hip is not None:
        return "the kernels are for NVIDIA GPUs"
    major, minor = torch.cuda.get_device_capability(device)
    if 10 * major + minor < (least := architectures(TUNED)[0]):
        return f"compute capability {major}.{minor} is too old: the kernels need {least / 10} or newer"
    return None


def _precondition(
    k: Tensor,
    v: Tensor,
    k_past: Tensor,
    y_past: Tensor,
    mask: Tensor | None,
    eps: float,
    implementation: str,
    training_diagonal: bool = False,
) -> Tensor:
    if implementation == "reference" or unsupported_reason(k, v, k_past, y_past):
        return solve.IMPLEMENTATIONS[implementation](k, v, k_past, y_past, mask, eps, training_diagonal).contiguous()
    return launch.precondition(k, v, k_past, y_past, mask, eps, training_diagonal)


def _decode_attention(
    q: Tensor,
    k_new: Tensor,
    v_new: Tensor,
    k: Tensor,
    y: Tensor,
    mask: Tensor | None,
    eps: float,
    implementation: str,
    training_diagonal: bool = False,
) -> tuple[Tensor, Tensor]:
    if implementation == "reference" or q.shape[2] > MOST_NEW or unsupported_reason(q, k_new, v_new, k, y):
        return decode.IMPLEMENTATIONS[implementation](q, k_new, v_new, k, y, mask, eps, training_diagonal)
    return launch.decode_attention(q, k_new, v_new, k, y, mask, eps, training_diagonal)


def _delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor,
    scale: float,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    tensors = (query, key, value, log_decay, beta, state)
    fixed = log_decay.dtype == state.dtype == torch.float32
    if implementation == "reference" or not fixed or unsupported_reason(key, query, value, beta):
        return delta.compute(*tensors, scale, implementation)
    return launch.delta_rule(*tensors, scale)


use_kernels()
