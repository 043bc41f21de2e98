"""What runs inside of an interpreter's process: decode attention's kernels, and their error against float64."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lucid_deploy.plugins.decode_attention.plan import plan_decode_attention
from lucid_deploy.plugins.decode_attention.reference import decode_attention_reference
from lucid_deploy.plugins.hosts.triton.launch import decode_attention
from tests.plugins.kernel_cases import (
    EPS,
    Case,
    make_mask,
    poisoned,
    poisoned_workspace,
    relative_error,
    round_weights,
    tuned_choice,
)
from tests.plugins.precondition.kernel_runs import precondition_inputs


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


def plain_decode(
    q: Tensor, k_new: Tensor, v_new: Tensor, k: Tensor, y: Tensor, mask: Tensor, training: bool = False
) -> tuple[Tensor, Tensor]:
    """The two formulas in float32 with E and the softmax weights rounded."""
    batch, heads, past, width = k.shape
    keys, root_d, dtype = torch.cat([k, k_new], 2).float(), math.sqrt(width), q.dtype
    norms = torch.rsqrt(keys.square().mean(-1) + EPS)[:, :, None, :]
    row_log = root_d * EPS * norms[..., -1:].square() * (mask[:, None, None, past:] if training else 0)
    e = torch.exp(k_new.float() @ keys.mT * norms * norms[..., -1:] / root_d - root_d + row_log)[..., :past]
    e = round_weights(e * (mask[:, None, None, :past] & mask[:, None, None, past:]), dtype)
    y_new = v_new.float() * row_log.exp() - e @ y.float()
    scores = q.float().view(batch, heads, -1, width) @ keys.mT / root_d
    visible = mask.clone()
    visible[:, -1] = True
    scores = scores.masked_fill(~visible[:, None, None, :], -torch.inf)
    p = round_weights(torch.exp(scores - scores.amax(-1, keepdim=True)), dtype)
    o = p @ torch.cat([y.float(), y_new], 2) / p.sum(-1, keepdim=True)
    return o.view(q.shape).to(dtype), y_new.to(dtype)


def run_decode(case: Case) -> dict[str, Any]:
    """As :func:`run_precondition`, for decode attention; with ``case.static``, NaN rows stand behind the cache."""
    inputs = decode_inputs(case)
    exact = decode_attention_reference(
        *(t if t.dtype == torch.bool else t.double() for t in inputs.values()), EPS, case.training
    )
    plain = plain_decode(*inputs.values(), case.training)
    hidden = ~inputs["mask"][:, None, : case.past, None]
    garbage = torch.full((case.batch, case.heads, case.static, case.width), torch.nan, dtype=case.torch_dtype)
    for name in ("k", "y"):
        inputs[name] = torch.cat([inputs[name].masked_fill(hidden, torch.nan), garbage], dim=2)
    unused = torch.zeros(case.batch, case.static, dtype=torch.bool)
    inputs["mask"] = torch.cat([inputs["mask"][:, : case.past], unused, inputs["mask"][:, case.past :]], dim=1)
    (o, o_guard), (y_new, y_guard) = poisoned(inputs["q"]), poisoned(inputs["v_new"])
    sizes = (case.batch, case.heads, case.groups, case.past + case.static, case.width, case.dtype, EPS, 80)
    workspace, workspace_guard = poisoned_workspace(plan_decode_attention(*sizes, tuned_choice(case)).workspace_bytes)
    decode_attention(
        **inputs,
        eps=EPS,
        training_diagonal=case.training,
        out=(o, y_new),
        workspace=workspace,
        tuned=tuned_choice(case),
    )
    return {
        "error": relative_error(o, exact[0]),
        "plain": relative_error(plain[0], exact[0]),
        "y_error": relative_error(y_new, exact[1]),
        "y_plain": relative_error(plain[1], exact[1]),
        "guards_intact": bool(o_guard.isnan().all() and y_guard.isnan().all() and (workspace_guard == 0xFF).all()),
        "padding_is_v": not case.padded or torch.equal(y_new[0], inputs["v_new"][0]),
    }
