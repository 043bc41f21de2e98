"""What runs inside of an interpreter's process: decode attention's kernels, and their error against float64."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lucid_deploy.cache.codecs import Float8Codec
from lucid_deploy.plugins.decode_attention.plan import plan_decode_attention
from lucid_deploy.plugins.decode_attention.reference import decode_attention_reference
from lucid_deploy.plugins.hosts.triton import launch
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
    keys = precondition_inputs(Case(**{**case.__dict__, "padded": False}))
    generator = torch.Generator().manual_seed(7)
    shape = (case.batch, case.heads * case.groups, case.new, case.width)
    towards_keys = keys["k"].double().repeat_interleave(case.groups, dim=1)
    q = (torch.randn(shape, generator=generator, dtype=torch.float64) + 0.5 * towards_keys).to(case.torch_dtype)
    mask = torch.cat([make_mask(case, case.past), torch.ones(case.batch, case.new, dtype=torch.bool)], dim=1)
    if case.padded:
        mask[0, case.past + case.new // 2 :] = False  # new tokens are padding too
        mask[-1, case.past + 1 : case.past + 2] = False  # a hole, where there are two or more
    if case.zeros:
        keys["k_past"][:, :, case.past // 2] = 0
        keys["y_past"][:, :, case.past // 3] = 0
    return {"q": q, "k_new": keys["k"], "v_new": keys["v"], "k": keys["k_past"], "y": keys["y_past"], "mask": mask}


def plain_decode(
    q: Tensor, k_new: Tensor, v_new: Tensor, k: Tensor, y: Tensor, mask: Tensor, training: bool = False
) -> tuple[Tensor, Tensor]:
    """The two formulas in float32, with E against the past and the softmax weights rounded; new tokens row by row."""
    batch, heads, past, width = k.shape
    n, root_d, dtype = k_new.shape[2], math.sqrt(width), q.dtype
    keys = torch.cat([k, k_new], 2).float()
    norms = torch.rsqrt(keys.square().mean(-1) + EPS)[:, :, None, :]
    new_norms = norms[..., past:].mT
    row_log = root_d * EPS * new_norms.square() * (mask[:, None, past:, None] if training else 0)
    e = torch.exp(k_new.float() @ keys.mT * norms * new_norms / root_d - root_d + row_log)
    e = e * (mask[:, None, None, :] & mask[:, None, past:, None])
    e_past, e_new = round_weights(e[..., :past], dtype), e[..., past:]
    y_new = v_new.float() * row_log.exp() - e_past @ y.float()
    for i in range(1, n):
        y_new[:, :, i] -= (e_new[:, :, i, None, :i] @ y_new[:, :, :i])[:, :, 0]
    row, column = torch.arange(past, past + n)[:, None], torch.arange(past + n)
    visible = (row > column) & mask[:, None, None, None, :] | (row == column)
    scores = q.float().view(batch, heads, -1, n, width) @ keys[:, :, None].mT / root_d
    scores = scores.masked_fill(~visible, -torch.inf)
    p = round_weights(torch.exp(scores - scores.amax(-1, keepdim=True)), dtype)
    o = p @ torch.cat([y.float(), y_new], 2)[:, :, None] / p.sum(-1, keepdim=True)
    return o.view(q.shape).to(dtype), y_new.to(dtype)


def _exact(case: Case, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    doubles = (tensor if tensor.dtype == torch.bool else tensor.double() for tensor in inputs.values())
    return decode_attention_reference(*doubles, EPS, case.training)


def run_decode(case: Case) -> dict[str, Any]:
    """As :func:`run_precondition`, for decode attention; with ``case.static``, NaN rows stand behind the cache.

    A cache in E4M3 is compared with float64 on the rounded cache; ``rounding`` is what that rounding alone changes.
    """
    inputs = decode_inputs(case)
    scales, unrounded = [], _exact(case, inputs)
    if case.float8:
        inputs["y"] = inputs["y"] * torch.logspace(-3, 2, case.past)[:, None].to(case.torch_dtype)  # rows of all sizes
        unrounded = _exact(case, inputs)
        *stored, k_scale, y_scale = Float8Codec().encode(inputs["k"], inputs["y"])
        assert case.zeros == bool((k_scale == 0).any()) == bool((y_scale == 0).any())
        scales = [k_scale, y_scale]
        for name, numbers, scale in zip(("k", "y"), stored, scales, strict=True):
            inputs[name] = numbers.double() * scale.double()
    exact = _exact(case, inputs)
    in_type = inputs["y"].to(case.torch_dtype) if case.float8 else inputs["y"]  # what the kernel multiplies with
    plain = plain_decode(**{**inputs, "y": in_type}, training=case.training)
    hidden = ~inputs["mask"][:, None, : case.past, None]
    garbage = torch.full((case.batch, case.heads, case.static, 1), torch.nan)
    for place, name in enumerate(("k", "y")):
        rows = stored[place].float() if case.float8 else inputs[name]
        rows = torch.cat([rows.masked_fill(hidden, torch.nan), garbage.expand(-1, -1, -1, case.width)], dim=2)
        inputs[name] = rows.to(torch.float8_e4m3fn if case.float8 else case.torch_dtype)
    scales = [torch.cat([scale.masked_fill(hidden, torch.nan), garbage], dim=2) for scale in scales]
    unused = torch.zeros(case.batch, case.static, dtype=torch.bool)
    inputs["mask"] = torch.cat([inputs["mask"][:, : case.past], unused, inputs["mask"][:, case.past :]], dim=1)
    (o, o_guard), (y_new, y_guard) = poisoned(inputs["q"]), poisoned(inputs["v_new"])
    sizes = (case.batch, case.heads, case.groups, case.past + case.static, case.width, case.dtype, EPS)
    launch.INTERPRETER_ARCH = case.arch
    plan = plan_decode_attention(*sizes, max(case.arch, 89), tuned_choice(case), new=case.new, float8=case.float8)
    workspace, workspace_guard = poisoned_workspace(plan.workspace_bytes)
    is_padding = ~inputs["mask"][:, -case.new :]
    launch.decode_attention(
        **inputs,
        eps=EPS,
        training_diagonal=case.training,
        scales=(scales[0], scales[1]) if scales else None,
        out=(o, y_new),
        workspace=workspace,
        tuned=tuned_choice(case),
    )
    return {
        "error": relative_error(o, exact[0]),
        "plain": relative_error(plain[0], exact[0]),
        "y_error": relative_error(y_new, exact[1]),
        "y_plain": relative_error(plain[1], exact[1]),
        "rounding": relative_error(exact[0], unrounded[0]),
        "y_rounding": relative_error(exact[1], unrounded[1]),
        "guards_intact": bool(o_guard.isnan().all() and y_guard.isnan().all() and (workspace_guard == 0xFF).all()),
        "padding_is_v": bool((y_new == inputs["v_new"])[is_padding[:, None, :].expand(y_new.shape[:3])].all()),
    }
