"""Run the Triton kernels on PyTorch tensors, on a GPU or in Triton's interpreter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lucid_deploy.plugins.decode_attention.plan import FLOAT8_ARCH, plan_decode_attention
from lucid_deploy.plugins.delta_rule.plan import FIXED, plan_delta_rule
from lucid_deploy.plugins.hosts.triton.kernel_functions import kernel_functions
from lucid_deploy.plugins.precondition.plan import plan_precondition
from lucid_deploy.plugins.shared.plan import Choice, Plan
from lucid_deploy.plugins.table import FLOATS

if TYPE_CHECKING:
    from torch import Tensor

INTERPRETER_ARCH = 80  # compute capability whose tuned constants Triton's interpreter uses; for E4M3, FLOAT8_ARCH
_SCALES = ("K_scale", "Y_scale")


def precondition(
    k: Tensor,
    v: Tensor,
    k_past: Tensor | None = None,
    y_past: Tensor | None = None,
    mask: Tensor | None = None,
    eps: float = 1e-5,
    training_diagonal: bool = False,
    *,
    out: Tensor | None = None,
    workspace: Tensor | None = None,
    tuned: Choice | None = None,
) -> Tensor:
    """Return Y of ``L Y = V``, solved with the Triton kernels; not differentiable.

    The other arguments are those of :func:`lucid_deploy.plugins.precondition.torch_operator.precondition`.

    Args:
        out: Contiguous tensor to write Y into; None: a new one.
        workspace: Scratch memory (uint8) of at least the plan's ``workspace_bytes``; None: new memory.
        tuned: Constants to use instead of those in ``tuned.json``.

    Raises:
        ValueError: The kernel does not support the shapes, types or device, or ``out`` or ``workspace`` is unsuitable.
        LucidError: Triton is not installed.
    """
    import torch

    k_past = k[:, :, :0] if k_past is None else k_past
    y_past = v[:, :, :0] if y_past is None else y_past
    batch, heads, new, width = k.shape
    past = k_past.shape[2]
    if v.shape != k.shape or k_past.shape != (batch, heads, past, width) or y_past.shape != k_past.shape:
        raise ValueError("k and v must have the same shape, k_past and y_past the same but for the number of tokens")
    plan = plan_precondition(batch, heads, new, past, width, _dtype(k), eps, _arch(k), tuned, float(training_diagonal))
    tensors = {"K": k, "V": v, "K_past": k_past, "Y_past": y_past, "mask": _mask(mask, k, past + new)}
    tensors["Y"] = torch.empty_like(v, memory_format=torch.contiguous_format) if out is None else out
    execute(plan, tensors, workspace)
    return tensors["Y"]


def decode_attention(
    q: Tensor,
    k_new: Tensor,
    v_new: Tensor,
    k: Tensor,
    y: Tensor,
    mask: Tensor | None = None,
    eps: float = 1e-5,
    training_diagonal: bool = False,
    *,
    scales: tuple[Tensor, Tensor] | None = None,
    out: tuple[Tensor, Tensor] | None = None,
    workspace: Tensor | None = None,
    tuned: Choice | None = None,
) -> tuple[Tensor, Tensor]:
    """Return O and Y of 1 to 16 new tokens over a cache, computed with the Triton kernels.

    The other arguments are those of :func:`lucid_deploy.plugins.decode_attention.torch_operator.decode_attention`.

    Args:
        scales: For a cache in ``float8_e4m3fn``: scales of the rows of K and of Y, float32 ``(B, H, P, 1)`` each.
            None: the cache has the type of ``q``.
        out: Contiguous tensors to write O and Y_new into; None: new ones.
        workspace, tuned: As in :func:`precondition`.

    Raises:
        ValueError: The kernels do not support the shapes, types or device, or ``out`` or ``workspace`` is unsuitable.
        LucidError: Triton is not installed.
    """
    import torch

    batch, heads, past, width = k.shape
    groups, n = q.shape[1] // heads, q.shape[2]
    if q.shape != (batch, heads * groups, n, width) or y.shape != k.shape:
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)} and y {tuple(y.shape)} do not fit together")
    if k_new.shape != (batch, heads, n, width) or v_new.shape != k_new.shape:
        raise ValueError(f"k_new and v_new must be {(batch, heads, n, width)}, as many new tokens as q has")
    sizes = (batch, heads, groups, past, width, _dtype(q), eps, _arch(q, least=FLOAT8_ARCH if scales else 0))
    plan = plan_decode_attention(*sizes, tuned, float(training_diagonal), n, float8=scales is not None)
    tensors = {"Q": q, "K_new": k_new, "V_new": v_new, "K": k, "Y": y, "mask": _mask(mask, k, past + n)}
    if scales is not None:
        if any(tensor.dtype != torch.float8_e4m3fn for tensor in (k, y)):
            raise ValueError(f"with scales, k and y must be float8_e4m3fn, not {k.dtype} and {y.dtype}")
        if any(scale.shape != (batch, heads, past, 1) for scale in scales):
            raise ValueError(f"scales must be {(batch, heads, past, 1)}, one per row of k and of y")
        tensors |= zip(_SCALES, scales, strict=True)
    new = torch.contiguous_format
    o, y_new = out or (torch.empty_like(q, memory_format=new), torch.empty_like(v_new, memory_format=new))
    tensors |= {"O": o, "Y_new": y_new}
    execute(plan, tensors, workspace)
    return o, y_new


def delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor,
    scale: float,
    *,
    out: tuple[Tensor, Tensor] | None = None,
    workspace: Tensor | None = None,
    tuned: Choice | None = None,
) -> tuple[Tensor, Tensor]:
    """Apply the delta rule with the Triton kernels; return the outputs and the new state.

    The other arguments are those of :func:`lucid_deploy.plugins.delta_rule.torch_operator.delta_rule`.

    Args:
        out: Contiguous tensors to write the outputs and the new state into; None: new ones.
        workspace, tuned: As in :func:`precondition`.

    Raises:
        ValueError: The kernels do not support the sizes, types or device, or ``out`` or ``workspace`` is unsuitable.
        LucidError: Triton is not installed.
    """
    import torch

    batch, heads, new, width = key.shape
    plan = plan_delta_rule(batch, heads, new, width, value.shape[3], _dtype(value), scale, _arch(value), tuned)
    dense = torch.contiguous_format
    output, new_state = out or (
        torch.empty_like(value, memory_format=dense),
        torch.empty_like(state, memory_format=dense),
    )
    tensors = {"query": query, "key": key, "value": value, "log_decay": log_decay, "beta": beta, "state": state}
    execute(plan, tensors | {"output": output, "new_state": new_state}, workspace)
    return output, new_state


def execute(plan: Plan, tensors: dict[str, Tensor], workspace: Tensor | None = None) -> None:
    """Launch a plan's steps on the current stream.

    Args:
        plan: The launches.
        tensors: The operator's tensors by name, on one device. All have the same floating-point type except the mask,
            tensors that are always float32, and K and Y of a cache with scales.
        workspace: uint8, at least ``plan.workspace_bytes`` long, with any contents; None: new memory.

    Raises:
        ValueError: Types differ, tensors are not on a GPU, an output is not contiguous, or the workspace is too small.
        LucidError: Triton is not installed.
    """
    import torch

    kernels = kernel_functions()
    float32 = (*FIXED, *_SCALES)
    float8 = ("K", "Y") if _SCALES[0] in tensors else ()
    floats = {name: tensor.dtype for name, tensor in tensors.items() if name not in ("mask", *float32, *float8)}
    if len(set(floats.values())) != 1:
        raise ValueError(f"all floating-point tensors must have the same type, not {floats}")
    if wrong := [name for name in float32 if name in tensors and tensors[name].dtype != torch.float32]:
        raise ValueError(f"{', '.join(wrong)} must be float32")
    if not all(tensors[name].is_contiguous() for name in plan.outputs):
        raise ValueError(f"the outputs {plan.outputs} must be contiguous")
    device = tensors[plan.outputs[0]].device
    if device.type != "cuda" and not _interpreted():
        raise ValueError(f"the kernels run on CUDA tensors, not on {device.type}; set TRITON_INTERPRET=1 for the CPU")
    if workspace is None:
        workspace = torch.empty(plan.workspace_bytes, dtype=torch.uint8, device=device)
    if workspace.numel() < plan.workspace_bytes:
        raise ValueError(f"the workspace has {workspace.numel()} bytes and {plan.workspace_bytes} are needed")
    workspace = workspace[: plan.workspace_bytes]
    workspace[: plan.zeroed_bytes].zero_()
    is_counters = plan.zeroed_bytes > 0
    bound = {name: tensor.contiguous() for name, tensor in tensors.items()}
    bound["workspace"] = workspace.view(torch.int32 if is_counters else torch.float32)
    with torch.cuda.device_of(workspace):
        for step in plan.steps:
            function = kernels[step.kernel]
            pointers = {argument_name(name): bound[name] for name in step.pointers}
            absent = dict.fromkeys(name for name in function.arg_names if name.startswith("p_"))
            function[step.grid](
                **(absent | pointers),
                **step.scalars,
                **step.constants,
                num_warps=step.num_warps,
                num_stages=step.num_stages,
            )


def argument_name(tensor: str) -> str:
    """Return the kernels' argument name for an operator's tensor or for ``workspace``."""
    return "p_work" if tensor == "workspace" else f"p_{tensor.lower()}"


def _interpreted() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)


def _dtype(tensor: Tensor) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in FLOATS:
        raise ValueError(f"the kernels take {', '.join(FLOATS)}, not {name}")
    return name


def _arch(tensor: Tensor, least: int = 0) -> int:
    """Return the compute capability of a tensor's GPU, 90 for 9.0; for Triton's interpreter, at least ``least``."""
    import torch

    if tensor.device.type != "cuda":
        return max(INTERPRETER_ARCH, least)
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


def _mask(mask: Tensor | None, like: Tensor, tokens: int) -> Tensor:
    """Return the mask as bytes, the form in which kernels read booleans; if there is no mask, all ones."""
    import torch

    batch = like.shape[0]
    if mask is None:
        return torch.ones(batch, tokens, dtype=torch.uint8, device=like.device)
    if mask.shape != (batch, tokens) or mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool {(batch, tokens)}, not {mask.dtype} {tuple(mask.shape)}")
    return mask.contiguous().view(torch.uint8)
