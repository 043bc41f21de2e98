"""Run the preconditioner's kernel in an interpreter's process and measure its error against float64."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lucid_deploy.plugins.hosts.triton.launch import precondition
from lucid_deploy.plugins.precondition.plan import NORM_TOKENS, plan_precondition
from lucid_deploy.plugins.precondition.reference import precondition_reference
from tests.plugins.kernel_cases import (
    EPS,
    Case,
    make_keys,
    make_mask,
    poisoned,
    poisoned_workspace,
    relative_error,
    round_weights,
    tuned_choice,
)


def exact_precondition(
    k: Tensor, v: Tensor, k_past: Tensor, y_past: Tensor, mask: Tensor, training: bool = False
) -> Tensor:
    return precondition_reference(k.double(), v.double(), k_past.double(), y_past.double(), mask, EPS, training)


def plain_precondition(
    k: Tensor, v: Tensor, k_past: Tensor, y_past: Tensor, mask: Tensor, training: bool = False
) -> Tensor:
    """Solve row by row in float32, rounding E and every row of Y, as a careful plain implementation does."""
    keys, values, root_d = torch.cat([k_past, k], 2).float(), v.float(), math.sqrt(k.shape[3])
    norms = torch.rsqrt(keys.square().mean(-1) + EPS)
    row_log = root_d * EPS * norms.square() * (mask[:, None] if training else 0)
    e = torch.exp(keys @ keys.mT * norms[..., None] * norms[..., None, :] / root_d - root_d + row_log[..., None])
    values = values * row_log[:, :, k_past.shape[2] :, None].exp()
    e = round_weights(e * (mask[:, None, :, None] & mask[:, None, None, :]), k.dtype)
    past, y = k_past.shape[2], torch.cat([y_past.float(), torch.zeros_like(values)], 2)
    for i in range(k.shape[2]):
        row = values[:, :, i] - (e[:, :, past + i, None, : past + i] @ y[:, :, : past + i])[:, :, 0]
        y[:, :, past + i] = row.to(k.dtype).float()
    return y[:, :, past:].to(k.dtype)


def precondition_inputs(case: Case) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(case.new + 1000 * case.past + case.width)
    keys = make_keys(case, case.past + case.new, generator).to(case.torch_dtype)
    values = torch.randn(keys.shape, generator=generator, dtype=torch.float64).to(case.torch_dtype)
    mask = make_mask(case, case.past + case.new)
    k_past, k, v_past, v = keys[:, :, : case.past], keys[:, :, case.past :], values[:, :, : case.past], values
    empty = k_past[:, :, :0]
    y_past = (
        exact_precondition(k_past, v_past, empty, empty, mask[:, : case.past], case.training) if case.past else v_past
    )
    v = v[:, :, case.past :]
    return {"k": k, "v": v, "k_past": k_past, "y_past": y_past.to(case.torch_dtype), "mask": mask}


def hide_padding(inputs: dict[str, Tensor], past: int) -> dict[str, Tensor]:
    """Fill masked keys and masked rows of past Y with NaN; a padded row's V does not change, since it is its result."""
    hidden = ~inputs["mask"][:, None, :, None]
    poison = {"k": hidden[:, :, past:], "k_past": hidden[:, :, :past], "y_past": hidden[:, :, :past]}
    return inputs | {name: inputs[name].masked_fill(where, torch.nan).contiguous() for name, where in poison.items()}


def run_precondition(case: Case) -> dict[str, Any]:
    """Return the kernel's and the plain implementation's error, and what else a test checks."""
    inputs = precondition_inputs(case)
    exact = exact_precondition(*inputs.values(), case.training)
    plain = plain_precondition(*inputs.values(), case.training)
    out, guard = poisoned(inputs["v"])
    sizes = (case.batch, case.heads, case.new, case.past, case.width, case.dtype, EPS, 80, tuned_choice(case))
    plan = plan_precondition(*sizes)
    workspace, workspace_guard = poisoned_workspace(plan.workspace_bytes)
    hidden = hide_padding(inputs, case.past)
    precondition(
        **hidden, eps=EPS, training_diagonal=case.training, out=out, workspace=workspace, tuned=tuned_choice(case)
    )
    padding = ~inputs["mask"][:, None, case.past :, None].expand_as(out)
    return {
        "error": relative_error(out, exact),
        "plain": relative_error(plain, exact),
        "guards_intact": bool(guard.isnan().all() and (workspace_guard == 0xFF).all()),
        "padding_is_v": bool(torch.equal(out[padding], inputs["v"][padding])),
    }


def run_with_values_of_sizes(case: Case, sizes: list[float], past: float) -> dict[str, float]:
    """Return both errors where V's rows are multiplied, 16 at a time, by sizes in turn, and Y of the past by one."""
    inputs = precondition_inputs(case)
    factors = torch.tensor(sizes, dtype=torch.float64)[torch.arange(case.new) // 16 % len(sizes)]
    inputs["v"] = (inputs["v"].double() * factors[:, None]).to(case.torch_dtype)
    inputs["y_past"] = (inputs["y_past"].double() * past).to(case.torch_dtype)
    exact = exact_precondition(*inputs.values())
    found = precondition(**inputs, eps=EPS, tuned=tuned_choice(case))
    return {
        "error": relative_error(found, exact),
        "plain": relative_error(plain_precondition(*inputs.values()), exact),
    }


def powers(rows: Tensor) -> Tensor:
    """Return what that kernel writes behind them for float32 rows of past Y: 2¹⁴ over the power below the largest."""
    parts = torch.nn.functional.pad(rows, (0, 0, 0, -rows.shape[2] % NORM_TOKENS)).unflatten(2, (-1, NORM_TOKENS))
    return torch.exp2(14 - parts.abs().amax((3, 4)).log2().floor()).flatten()


def inverse_norms(keys: Tensor) -> Tensor:
    """Return what that kernel writes, without padding: float32, one after another."""
    return torch.rsqrt(keys.float().square().mean(-1) + EPS).flatten()


def problem_tensors(problem: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a shared problem's tensors by the operator's names."""
    names = {"K": "k", "V": "v", "K_past": "k_past", "Y_past": "y_past", "Y": "y", "workspace": "workspace"}
    return {name: problem[key] for name, key in names.items()} | {"mask": problem["mask"].view(torch.uint8)}


def shared_problem(case: Case) -> dict[str, Tensor]:
    """Return a problem in memory that two processes can work on, and its exact solution."""
    inputs = precondition_inputs(case)
    sizes = (case.batch, case.heads, case.new, case.past, case.width, case.dtype, EPS, 80, tuned_choice(case))
    workspace = torch.zeros(plan_precondition(*sizes).workspace_bytes // 4, dtype=torch.int32)
    heads = 1 + case.batch * case.heads
    written = [inverse_norms(torch.cat([inputs["k_past"], inputs["k"]], 2)), powers(inputs["y_past"])]
    written = torch.cat(written).view(torch.int32)
    workspace[heads : heads + len(written)] = written
    problem = inputs | {"y": torch.full_like(inputs["v"], torch.nan), "workspace": workspace}
    problem["exact"] = exact_precondition(*inputs.values())
    return {name: tensor.contiguous().share_memory_() for name, tensor in problem.items()}


def run_next_program(case: Case, problem: dict[str, Tensor]) -> bool:
    """Run one program on a shared problem: it takes the next ticket and waits for the rows before its own."""
    from lucid_deploy.plugins.precondition.kernel import precondition_kernel

    sizes = (case.batch, case.heads, case.new, case.past, case.width, case.dtype, EPS, 80, tuned_choice(case))
    step = plan_precondition(*sizes).steps[-1]
    tensors = problem_tensors(problem)
    arguments = [tensors[name] for name in step.pointers]
    precondition_kernel[(1, 1, 1)](*arguments, *step.scalars.values(), **step.constants)
    return True
