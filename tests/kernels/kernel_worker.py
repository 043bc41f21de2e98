"""What runs inside the interpreter's process: inputs, kernels, and errors against float64.

Triton reads TRITON_INTERPRET when it is imported, for the whole process, so the kernel tests send their cases to a
process of their own and the other tests never notice.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

EPS = 1e-5
GUARD = 64  # elements behind every output that must stay untouched


@dataclass(frozen=True)
class Case:
    """One problem. ``keys`` is the correlation of two keys, or ``repeated``."""

    new: int
    past: int = 0
    width: int = 64
    dtype: str = "float32"
    keys: float | str = 0.9
    padded: bool = False
    batch: int = 1
    heads: int = 2
    groups: int = 4
    tuned: tuple[int, int] | None = None  # BLOCK_M, BLOCK_N
    static: int = 0  # rows of garbage behind the cache that the mask hides

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)


def start() -> None:
    """Make this process an interpreter of kernels that rounds as a GPU does."""
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    from tests.kernels.faithful_interpreter import round_like_a_gpu

    round_like_a_gpu()


def make_keys(case: Case, count: int, generator: torch.Generator) -> Tensor:
    shape = (case.batch, case.heads, count, case.width)
    own = torch.randn(shape, generator=generator, dtype=torch.float64)
    if case.keys == "repeated":
        return own[:, :, torch.arange(count) % 3] if count else own
    common = torch.randn((case.batch, case.heads, 1, case.width), generator=generator, dtype=torch.float64)
    return math.sqrt(case.keys) * common + math.sqrt(1 - case.keys) * own


def make_mask(case: Case, tokens: int) -> Tensor:
    mask = torch.ones(case.batch, tokens, dtype=torch.bool)
    if case.padded:
        mask[-1, : max(1, tokens // 3)] = False  # left padding
        mask[0, tokens // 2 : tokens // 2 + 2] = False  # a hole
    return mask


def exact_precondition(k: Tensor, v: Tensor, k_past: Tensor, y_past: Tensor, mask: Tensor) -> Tensor:
    from lucid_deploy.plugins.precondition.reference import precondition_reference

    return precondition_reference(k.double(), v.double(), k_past.double(), y_past.double(), mask, EPS)


def round_weights(e: Tensor, dtype: torch.dtype) -> Tensor:
    """Round E as far as a plain implementation may: float16 for float16, tf32 for bfloat16 (design, table of §1)."""
    if dtype == torch.float16:
        return e.half().float()
    if dtype == torch.bfloat16:
        return ((e.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
    return e


def plain_precondition(k: Tensor, v: Tensor, k_past: Tensor, y_past: Tensor, mask: Tensor) -> Tensor:
    """Row by row in float32 with E and every stored row of Y rounded: what a careful plain implementation loses."""
    keys, values, root_d = torch.cat([k_past, k], 2).float(), v.float(), math.sqrt(k.shape[3])
    norms = torch.rsqrt(keys.square().mean(-1) + EPS)
    e = torch.exp(keys @ keys.mT * norms[..., None] * norms[..., None, :] / root_d - root_d)
    e = round_weights(e * (mask[:, None, :, None] & mask[:, None, None, :]), k.dtype)
    past, y = k_past.shape[2], torch.cat([y_past.float(), torch.zeros_like(values)], 2)
    for i in range(k.shape[2]):
        row = values[:, :, i] - (e[:, :, past + i, None, : past + i] @ y[:, :, : past + i])[:, :, 0]
        y[:, :, past + i] = row.to(k.dtype).float()
    return y[:, :, past:].to(k.dtype)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Largest relative error (Frobenius) over batch and heads; infinite when anything is not finite."""
    if not torch.isfinite(found).all():
        return math.inf
    error = (found.double() - wanted).flatten(2).norm(dim=2) / wanted.flatten(2).norm(dim=2).clamp_min(1e-300)
    return error.max().item()


def poisoned(like: Tensor) -> tuple[Tensor, Tensor]:
    """Return an output full of NaN and the guard behind it."""
    memory = torch.full((like.numel() + GUARD,), torch.nan, dtype=like.dtype)
    return memory[: like.numel()].view(like.shape), memory[like.numel() :]


def poisoned_workspace(size: int) -> tuple[Tensor, Tensor]:
    memory = torch.full((size + 4 * GUARD,), 0xFF, dtype=torch.uint8)
    return memory[:size], memory[size:]


def precondition_inputs(case: Case) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(case.new + 1000 * case.past + case.width)
    keys = make_keys(case, case.past + case.new, generator).to(case.torch_dtype)
    values = torch.randn(keys.shape, generator=generator, dtype=torch.float64).to(case.torch_dtype)
    mask = make_mask(case, case.past + case.new)
    k_past, k, v_past, v = keys[:, :, : case.past], keys[:, :, case.past :], values[:, :, : case.past], values
    empty = k_past[:, :, :0]
    y_past = exact_precondition(k_past, v_past, empty, empty, mask[:, : case.past]) if case.past else v_past
    v = v[:, :, case.past :]
    return {"k": k, "v": v, "k_past": k_past, "y_past": y_past.to(case.torch_dtype), "mask": mask}


def hide_padding(inputs: dict[str, Tensor], past: int) -> dict[str, Tensor]:
    """Fill what the mask hides with NaN: keys, and the past's Y; a padded row's own V is its result and stays."""
    hidden = ~inputs["mask"][:, None, :, None]
    poison = {"k": hidden[:, :, past:], "k_past": hidden[:, :, :past], "y_past": hidden[:, :, :past]}
    return inputs | {name: inputs[name].masked_fill(where, torch.nan).contiguous() for name, where in poison.items()}


def tuned_choice(case: Case) -> Any:
    from lucid_deploy.plugins.kernels.plan import Choice

    return Choice(*case.tuned, num_warps=4, num_stages=2) if case.tuned else None


def run_precondition(case: Case) -> dict[str, Any]:
    """Return the kernel's and the plain implementation's error, and what else a test checks."""
    from lucid_deploy.plugins.kernels import plan_precondition, precondition

    inputs = precondition_inputs(case)
    exact, plain = exact_precondition(*inputs.values()), plain_precondition(*inputs.values())
    out, guard = poisoned(inputs["v"])
    sizes = (case.batch, case.heads, case.new, case.past, case.width, case.dtype, EPS, 80, tuned_choice(case))
    plan = plan_precondition(*sizes)
    workspace, workspace_guard = poisoned_workspace(plan.workspace_bytes)
    hidden = hide_padding(inputs, case.past)
    precondition(**hidden, eps=EPS, out=out, workspace=workspace, tuned=tuned_choice(case))
    padding = ~inputs["mask"][:, None, case.past :, None].expand_as(out)
    return {
        "error": relative_error(out, exact),
        "plain": relative_error(plain, exact),
        "guards_intact": bool(guard.isnan().all() and (workspace_guard == 0xFF).all()),
        "padding_is_v": bool(torch.equal(out[padding], inputs["v"][padding])),
    }


def run_in_given_order(case: Case, seed: int) -> dict[str, bool]:
    """Run the programs one by one, in a random order in which every program follows those it waits for."""
    from lucid_deploy.plugins.kernels import plan_precondition, precondition
    from lucid_deploy.plugins.kernels.precondition_kernel import precondition_kernel

    inputs = precondition_inputs(case)
    expected = precondition(**inputs, eps=EPS, tuned=tuned_choice(case))
    sizes = (case.batch, case.heads, case.new, case.past, case.width, case.dtype, EPS, 80, tuned_choice(case))
    plan = plan_precondition(*sizes)
    step = plan.steps[0]
    out, _ = poisoned(inputs["v"])
    workspace = torch.zeros(plan.workspace_bytes // 4, dtype=torch.int32)
    tensors = {"K": inputs["k"].contiguous(), "V": inputs["v"].contiguous(), "K_past": inputs["k_past"].contiguous()}
    tensors |= {"Y_past": inputs["y_past"].contiguous(), "mask": inputs["mask"].view(torch.uint8), "Y": out}
    arguments = [(tensors | {"workspace": workspace})[name] for name in step.pointers]
    generator = torch.Generator().manual_seed(seed)
    batch_heads = case.batch * case.heads
    next_row, rows = [0] * batch_heads, step.grid[0] // batch_heads
    order = []
    while open_heads := [head for head in range(batch_heads) if next_row[head] < rows]:
        head = open_heads[int(torch.randint(len(open_heads), (1,), generator=generator))]
        order.append(next_row[head] * batch_heads + head)
        next_row[head] += 1
    for ticket in order:
        workspace[0] = ticket
        precondition_kernel[(1, 1, 1)](*arguments, *step.scalars.values(), **step.constants)
    return {"shuffled": order != sorted(order), "equal": torch.equal(out, expected)}


def shared_problem(case: Case) -> dict[str, Tensor]:
    """Return a problem in memory that two processes can work on, and its exact solution."""
    inputs = precondition_inputs(case)
    workspace = torch.zeros(1 + case.batch * case.heads, dtype=torch.int32)
    problem = inputs | {"y": torch.full_like(inputs["v"], torch.nan), "workspace": workspace}
    problem["exact"] = exact_precondition(*inputs.values())
    return {name: tensor.contiguous().share_memory_() for name, tensor in problem.items()}


def run_next_program(case: Case, problem: dict[str, Tensor]) -> bool:
    """Run one program on a shared problem: it takes the next ticket and waits for the rows before its own."""
    from lucid_deploy.plugins.kernels import plan_precondition
    from lucid_deploy.plugins.kernels.precondition_kernel import precondition_kernel

    sizes = (case.batch, case.heads, case.new, case.past, case.width, case.dtype, EPS, 80, tuned_choice(case))
    step = plan_precondition(*sizes).steps[0]
    names = ("k", "v", "k_past", "y_past", "mask", "y", "workspace")
    arguments = [problem[name].view(torch.uint8) if name == "mask" else problem[name] for name in names]
    precondition_kernel[(1, 1, 1)](*arguments, *step.scalars.values(), **step.constants)
    return True


def run_far_away(dtype: str, offset_bits: int) -> float:
    """Return the error of the first rows of a head that starts beyond element 2^offset_bits of its tensors."""
    from lucid_deploy.plugins.kernels import plan_precondition
    from lucid_deploy.plugins.kernels.precondition_kernel import precondition_kernel

    tokens, width = 1 << 20, 64
    heads = (1 << offset_bits) // (tokens * width) + 2
    step = plan_precondition(1, heads, tokens, 0, width, dtype, EPS, 80).steps[0]
    rows = step.constants["BLOCK_M"]
    case = Case(new=rows, dtype=dtype, keys=0.9, heads=1)
    inputs = precondition_inputs(case)
    size, first = heads * tokens * width, (heads - 1) * tokens * width
    place = slice(first, first + rows * width)
    k, y = torch.empty(size, dtype=case.torch_dtype), torch.empty(size, dtype=case.torch_dtype)  # pages stay untouched
    k[place] = inputs["k"].flatten()
    inputs["v"] = inputs["k"]
    workspace = torch.zeros(1 + heads, dtype=torch.int32)
    workspace[0] = heads - 1  # the ticket of the last head's first rows
    mask = torch.ones(tokens, dtype=torch.uint8)
    precondition_kernel[(1, 1, 1)](k, k, k, k, mask, y, workspace, *step.scalars.values(), **step.constants)
    return relative_error(y[place].view(1, 1, rows, width), exact_precondition(*inputs.values()))


def decode_inputs(case: Case) -> dict[str, Tensor]:
    keys = precondition_inputs(Case(**{**case.__dict__, "new": 1, "padded": False}))
    generator = torch.Generator().manual_seed(7)
    shape = (case.batch, case.heads * case.groups, 1, case.width)
    towards_keys = keys["k"].double().repeat_interleave(case.groups, dim=1)
    q = (torch.randn(shape, generator=generator, dtype=torch.float64) + 0.5 * towards_keys).to(case.torch_dtype)
    mask = torch.cat([make_mask(case, case.past), torch.ones(case.batch, 1, dtype=torch.bool)], dim=1)
    if case.padded:
        mask[0, -1] = False  # the new token itself is padding
    return {"q": q, "k_new": keys["k"], "v_new": keys["v"], "k": keys["k_past"], "y": keys["y_past"], "mask": mask}


def plain_decode(q: Tensor, k_new: Tensor, v_new: Tensor, k: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The two formulas in float32 with E and the softmax weights rounded."""
    batch, heads, past, width = k.shape
    keys, root_d, dtype = torch.cat([k, k_new], 2).float(), math.sqrt(width), q.dtype
    norms = torch.rsqrt(keys.square().mean(-1) + EPS)[:, :, None, :]
    e = torch.exp(k_new.float() @ keys.mT * norms * norms[..., -1:] / root_d - root_d)[..., :past]
    e = round_weights(e * (mask[:, None, None, :past] & mask[:, None, None, past:]), dtype)
    y_new = v_new.float() - e @ y.float()
    scores = q.float().view(batch, heads, -1, width) @ keys.mT / root_d
    visible = mask.clone()
    visible[:, -1] = True
    scores = scores.masked_fill(~visible[:, None, None, :], -torch.inf)
    p = round_weights(torch.exp(scores - scores.amax(-1, keepdim=True)), dtype)
    o = p @ torch.cat([y.float(), y_new], 2) / p.sum(-1, keepdim=True)
    return o.view(q.shape).to(dtype), y_new.to(dtype)


def run_decode(case: Case) -> dict[str, Any]:
    """As :func:`run_precondition`, for decode attention; with ``case.static``, NaN rows stand behind the cache."""
    from lucid_deploy.plugins.decode_attention.reference import decode_attention_reference
    from lucid_deploy.plugins.kernels import decode_attention, plan_decode_attention

    inputs = decode_inputs(case)
    exact = decode_attention_reference(*(t if t.dtype == torch.bool else t.double() for t in inputs.values()), EPS)
    plain = plain_decode(*inputs.values())
    hidden = ~inputs["mask"][:, None, : case.past, None]
    garbage = torch.full((case.batch, case.heads, case.static, case.width), torch.nan, dtype=case.torch_dtype)
    for name in ("k", "y"):
        inputs[name] = torch.cat([inputs[name].masked_fill(hidden, torch.nan), garbage], dim=2)
    unused = torch.zeros(case.batch, case.static, dtype=torch.bool)
    inputs["mask"] = torch.cat([inputs["mask"][:, : case.past], unused, inputs["mask"][:, case.past :]], dim=1)
    (o, o_guard), (y_new, y_guard) = poisoned(inputs["q"]), poisoned(inputs["v_new"])
    sizes = (case.batch, case.heads, case.groups, case.past + case.static, case.width, case.dtype, EPS, 80)
    workspace, workspace_guard = poisoned_workspace(plan_decode_attention(*sizes, tuned_choice(case)).workspace_bytes)
    decode_attention(**inputs, eps=EPS, out=(o, y_new), workspace=workspace, tuned=tuned_choice(case))
    return {
        "error": relative_error(o, exact[0]),
        "plain": relative_error(plain[0], exact[0]),
        "y_error": relative_error(y_new, exact[1]),
        "y_plain": relative_error(plain[1], exact[1]),
        "guards_intact": bool(o_guard.isnan().all() and y_guard.isnan().all() and (workspace_guard == 0xFF).all()),
        "padding_is_v": not case.padded or torch.equal(y_new[0], inputs["v_new"][0]),
    }
