"""Run a shipped variant's loop over so many tiles, as one program that goes through all of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lucid_deploy.plugins.decode_attention.plan import FLOAT8_KERNEL, cache_unit, plan_decode_attention
from lucid_deploy.plugins.delta_rule.plan import plan_delta_rule
from lucid_deploy.plugins.precondition.plan import plan_precondition
from lucid_deploy.plugins.shared.plan import Plan, Variant, width_unit
from tools.ptx.banks import Count, Counter
from tools.ptx.launcher import Compiler, Launcher
from tools.ptx.source import Instruction

EPS = 1e-5
KERNELS = ("precondition_kernel", "decode_split_kernel", FLOAT8_KERNEL, "delta_state_kernel")  # that loop over tiles
MORE = 2  # tiles beyond the pipeline's stages, so that a tile more is a pass more through the loop


def accesses_of_a_pass(variant: Variant, arch: int, compiler: Compiler) -> dict[Instruction, Count]:
    """Return what one pass through a variant's loop takes shared memory, by instruction of PTX.

    It is what a tile more takes.

    Args:
        variant: One of those that are shipped, of one of :data:`KERNELS`.
        arch: Compute capability, 90 for 9.0.
        compiler: As for :class:`~tools.ptx.launcher.Launcher`.
    """
    few, more = (_counted(variant, arch, compiler, variant.num_stages + MORE + i) for i in (0, 1))
    return more.less(few)


def _counted(variant: Variant, arch: int, compiler: Compiler, tiles: int) -> Counter:
    torch.manual_seed(0)
    plan, tensors = _LAUNCHES[variant.kernel](variant, arch, tiles)
    assert any(step.variant == variant.name and step.grid == (1, 1, 1) for step in plan.steps), plan
    counter, launcher = Counter(), Launcher(compiler, arch)
    launcher.watches[variant.kernel] = counter
    launcher.execute(plan, tensors)
    return counter


def _solve(variant: Variant, arch: int, tiles: int) -> tuple[Plan, dict[str, Tensor]]:
    constants, width = dict(variant.constants), _width(variant)
    new, past = constants["BLOCK_M"], tiles * constants["BLOCK_N"]
    dtype = getattr(torch, variant.dtype)
    k, v, y = (torch.randn(1, 1, new, width).to(dtype) for _ in range(3))
    k_past, y_past = (torch.randn(1, 1, past, width).to(dtype) for _ in range(2))
    tensors = {"K": k, "V": v, "K_past": k_past, "Y_past": y_past, "mask": torch.ones(1, past + new, dtype=torch.bool)}
    return plan_precondition(1, 1, new, past, width, variant.dtype, EPS, arch), tensors | {"Y": y}


def _decode(variant: Variant, arch: int, tiles: int) -> tuple[Plan, dict[str, Tensor]]:
    constants, width = dict(variant.constants), _width(variant)
    groups, past = constants["ROWS"] - 1, tiles * constants["BLOCK_N"]
    dtype, is_float8 = getattr(torch, variant.dtype), variant.kernel == FLOAT8_KERNEL
    q, o = (torch.randn(1, groups, 1, width).to(dtype) for _ in range(2))
    k_new, v_new, y_new = (torch.randn(1, 1, 1, width).to(dtype) for _ in range(3))
    stored = torch.float8_e4m3fn if is_float8 else dtype
    k, y = (torch.randn(1, 1, past, width).to(stored) for _ in range(2))
    tensors = {"Q": q, "K_new": k_new, "V_new": v_new, "K": k, "Y": y, "O": o, "Y_new": y_new}
    tensors["mask"] = torch.ones(1, past + 1, dtype=torch.bool)
    tensors |= {name: torch.ones(1, 1, past, 1) for name in ("K_scale", "Y_scale")}
    plan = plan_decode_attention(1, 1, groups, past, width, variant.dtype, EPS, arch, float8=is_float8)
    split = replace(plan.steps[0], grid=(1, 1, 1), scalars=plan.steps[0].scalars | {"n_splits": 1})
    return replace(plan, steps=(split,)), tensors


def _delta(variant: Variant, arch: int, tiles: int) -> tuple[Plan, dict[str, Tensor]]:
    constants, width = dict(variant.constants), _width(variant)
    new, columns = tiles * constants["BLOCK_M"], constants["BLOCK_N"]
    dtype = getattr(torch, variant.dtype)
    query, key = (torch.nn.functional.normalize(torch.randn(1, 1, new, width), dim=-1).to(dtype) for _ in range(2))
    value, output = (torch.randn(1, 1, new, columns).to(dtype) for _ in range(2))
    state, new_state = (torch.randn(1, 1, width, columns) for _ in range(2))
    tensors = {"query": query, "key": key, "value": value, "log_decay": torch.full((1, 1, new), -0.1)}
    tensors |= {"beta": torch.full((1, 1, new), 0.5).to(dtype), "state": state}
    plan = plan_delta_rule(1, 1, new, width, columns, variant.dtype, width**-0.5, arch)
    return plan, tensors | {"output": output, "new_state": new_state}


def _width(variant: Variant) -> int:
    """Return a head width that the variant is launched for, the widest."""
    constants, padded = dict(variant.constants), variant.padded_width
    if variant.kernel == "delta_state_kernel":
        return padded
    is_decode = "ROWS" in constants
    unit = cache_unit(padded, variant.dtype, constants["ROWS"]) if is_decode else width_unit(padded, variant.dtype)
    return padded if unit == constants["WIDTH_UNIT"] else padded - constants["WIDTH_UNIT"]


_LAUNCHES = {
    "precondition_kernel": _solve,
    "decode_split_kernel": _decode,
    FLOAT8_KERNEL: _decode,
    "delta_state_kernel": _delta,
}
