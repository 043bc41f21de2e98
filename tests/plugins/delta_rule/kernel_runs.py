"""Run the delta rule's kernels in an interpreter's process and measure their errors against float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lucid_deploy.plugins.block_inverse.reference import merge_masks
from lucid_deploy.plugins.delta_rule.plan import plan_delta_rule
from lucid_deploy.plugins.delta_rule.reference import delta_rule_reference
from lucid_deploy.plugins.delta_rule.torch_operator import delta_rule_operator
from lucid_deploy.plugins.hosts.triton.launch import INTERPRETER_ARCH, delta_rule
from lucid_deploy.plugins.shared.plan import Choice, Plan
from tests.plugins.delta_rule.problems import Inputs, doubled, in_type, inputs
from tests.plugins.kernel_cases import poisoned, poisoned_workspace, relative_error

SCALE = 0.3
# A kernel's error may be so many times that of a plain version with the same rounding. The output of half types is
# rounded alike in both; otherwise they differ by the order of sums, and by what NumPy's exp rounds to: 1.9 was seen.
# One tf32 product in the place of three gives hundreds.
FACTOR = 3.0
OUTPUT_FACTOR = {"float32": 3.0, "float16": 1.25, "bfloat16": 1.25}
Times = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """One problem; ``tuned`` is the chunk and the columns of the state of one program."""

    tokens: int
    correlation: float = 0.9
    beta: str = "open"
    decay: str = "slow"
    dtype: str = "float32"
    widths: tuple[int, int] = (32, 36)
    tuned: tuple[int, int] | None = None


def plain_delta_rule(given: Inputs, chunk: int, times: Times) -> tuple[Tensor, Tensor]:
    """Compute by chunks in float32 with merged inverses, as a careful plain implementation does.

    With β near 2 and one key repeated, errors depend on the order of sums more than on anything else (merging then
    loses up to 8 times more than substitution does). For bfloat16 tensors, the state and the corrections have 16 bits
    where they meet keys and queries.
    """
    dtype = given[2].dtype
    query, key, value, log_decay, beta, s = (each.float() for each in given)
    rows = []
    for first in range(0, key.shape[2], chunk):
        q, k, v, b, g = (
            _part(each, first, chunk) for each in (query, key, value, beta[..., None], log_decay[..., None])
        )
        g = g.clamp_min(-1e4)
        between = (g * torch.ones(k.shape[2], k.shape[2]).tril(-1)).cumsum(2)  # (B, H, C, C)
        gamma, start = between.exp().tril(), g.cumsum(2).exp()
        solve = _inverse(times, (b * gamma * times(k, k.mT)).tril(-1)) * b.mT
        r = times(solve, v - start * times(k, _rounded(s, dtype)))
        rows.append(SCALE * (start * times(q, _rounded(s, dtype)) + times(gamma * times(q, k.mT), r)))
        s = start[:, :, -1:] * s + times(k.mT, _rounded(between[:, :, -1:].mT.exp() * r, dtype))
    return torch.cat(rows, dim=2)[:, :, : key.shape[2]].to(dtype), s


def _part(x: Tensor, first: int, chunk: int) -> Tensor:
    """Return a chunk of ``(B, H, N, W)``, with rows of 0 after the last token."""
    part = x[:, :, first : first + chunk]
    return torch.nn.functional.pad(part, (0, 0, 0, chunk - part.shape[2]))


def _times(a: Tensor, b: Tensor) -> Tensor:
    """Multiply with NumPy, as the interpreter does: the order of sums depends on its library and the processor."""
    return torch.from_numpy(np.matmul(a.numpy(), b.numpy()))


def _times_from_behind(a: Tensor, b: Tensor) -> Tensor:
    return _times(a.flip(-1), b.flip(-2))


def _inverse(times: Times, x: Tensor) -> Tensor:
    size = x.shape[-1]
    t = torch.eye(size).expand_as(x)
    for mask in merge_masks(size):
        t = t - times(t, times(mask * x, t))
    return t


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype != torch.bfloat16:
        return x
    high = x.bfloat16().float()
    return high + (x - high).bfloat16().float()


def run_delta_rule(case: Case) -> dict[str, Any]:
    """Return errors of outputs and state of the kernels and the plain version, and whether the guards are intact."""
    given = in_type(inputs(case.tokens, case.correlation, case.beta, case.decay, (1, 2), case.widths), _dtype(case))
    exact = delta_rule_reference(*doubled(given), SCALE)
    tuned = Choice(*case.tuned, num_warps=4, num_stages=1) if case.tuned else None
    plan = plan_delta_rule(1, 2, case.tokens, *case.widths, case.dtype, SCALE, INTERPRETER_ARCH, tuned)
    chunk = 1 if case.tokens == 1 else plan.steps[0].constants["BLOCK_M"]
    # The order that a library sums in moved the plain error of a state from 2.4e-6 to 9.8e-6: the worse of two.
    orders = [plain_delta_rule(given, chunk, times) for times in (_times, _times_from_behind)]
    plain = [[relative_error(*pair) for pair in zip(found, exact, strict=True)] for found in orders]
    made = [poisoned(like) for like in (given[2], given[5])]
    workspace, guard = poisoned_workspace(plan.workspace_bytes)
    delta_rule(*given, SCALE, out=(made[0][0], made[1][0]), workspace=workspace, tuned=tuned)
    return {
        "errors": [relative_error(found, wanted) for (found, _), wanted in zip(made, exact, strict=True)],
        "plain": [max(both) for both in zip(*plain, strict=True)],
        "guards_intact": all(bool(each.isnan().all()) for _, each in made) and bool((guard == 0xFF).all()),
    }


def _dtype(case: Case) -> torch.dtype:
    return getattr(torch, case.dtype)


def run_operator(tokens: int, dtype: str, changes: str = "") -> dict[str, Any]:
    """Return which kernels PyTorch's operator launches for supported or, with ``changes``, unsupported tensors.

    Args:
        tokens: Number of new tokens.
        dtype: Type of the model.
        changes: ``float64``: of all tensors; ``narrow``: keys of width 8; ``state``: the state has the model's type.
    """
    from lucid_deploy.plugins.hosts.triton import launch
    from lucid_deploy.plugins.hosts.triton.torch_kernels import use_kernels

    use_kernels("cpu")
    given = in_type(inputs(tokens, widths=(8 if changes == "narrow" else 32, 36)), getattr(torch, dtype))
    if changes == "float64":
        given = doubled(given)
    if changes == "state":
        given = (*given[:5], given[5].to(given[2].dtype))
    launched: list[str] = []
    execute = launch.execute

    def noted(plan: Plan, *arguments: Any) -> None:
        launched.extend(step.kernel.split("_")[1] for step in plan.steps)
        execute(plan, *arguments)

    launch.execute = noted
    try:
        delta_rule_operator(*given, SCALE, "blocked")
    finally:
        launch.execute = execute
    torch.library.opcheck(delta_rule_operator, (*given, SCALE, "blocked"))
    return {"launched": launched, "in_order": True}
