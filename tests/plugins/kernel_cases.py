"""Test cases for the Triton kernels, and how their errors are judged."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lucid_deploy.plugins.shared.plan import Choice

EPS = 1e-5
# A kernel's error against an exact solve of the same rounded inputs must not exceed FACTOR times the error of
# a plain implementation in PyTorch that rounds weights and the stored Y alike. For the half types the two differ by the
# order of their sums: 1.02 was seen, and E in one bfloat16 part gives 4. In float32 they also differ in what exp and
# rsqrt of NumPy and of PyTorch round to on a machine's processor, which exponents of up to √d multiply: 0.5 to 2.4 was
# seen; one tf32 product in the place of three gives hundreds.
FACTOR = {"float32": 3.0, "float16": 1.25, "bfloat16": 1.25}
FLOOR = {"float32": 1e-7, "float16": 0.0, "bfloat16": 0.0}  # where the plain implementation is exact by luck
GUARD = 64  # elements after every output, which kernels must not write


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
    tuned: tuple[int, ...] | None = None  # BLOCK_M, BLOCK_N, and where keys are multiplied in chunks, CHUNK_D
    training: bool = False  # the training diagonal, with keys small enough for it to matter
    static: int = 0  # masked rows of garbage after the cache
    float8: bool = False  # whether the cache is E4M3, with a scale for each row
    arch: int = 80  # compute capability whose variant is interpreted; at least 89 with a cache of E4M3
    zeros: bool = False  # whether the cache has a row of zeros in K and another one in Y, whose scales are 0

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)


def make_keys(case: Case, count: int, generator: torch.Generator) -> Tensor:
    return _make_keys(case, count, generator) * (0.01 if case.training else 1.0)


def _make_keys(case: Case, count: int, generator: torch.Generator) -> Tensor:
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


def round_weights(e: Tensor, dtype: torch.dtype) -> Tensor:
    """Round E as far as a plain implementation may: float16 for float16, tf32 for bfloat16 (design, table of §1)."""
    if dtype == torch.float16:
        return e.half().float()
    if dtype == torch.bfloat16:
        return ((e.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
    return e


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Largest relative error (Frobenius) over batch and heads; infinite when anything is not finite."""
    if not torch.isfinite(found).all():
        return math.inf
    error = (found.double() - wanted).flatten(2).norm(dim=2) / wanted.flatten(2).norm(dim=2).clamp_min(1e-300)
    return error.max().item()


def poisoned(like: Tensor) -> tuple[Tensor, Tensor]:
    """Return an output filled with NaN, and the guard after it."""
    memory = torch.full((like.numel() + GUARD,), torch.nan, dtype=like.dtype)
    return memory[: like.numel()].view(like.shape), memory[like.numel() :]


def poisoned_workspace(size: int) -> tuple[Tensor, Tensor]:
    memory = torch.full((size + 4 * GUARD,), 0xFF, dtype=torch.uint8)
    return memory[:size], memory[size:]


def tuned_choice(case: Case) -> Choice | None:
    if case.tuned is None:
        return None
    block_m, block_n, *chunk = case.tuned
    return Choice(block_m, block_n, 4, 2, *chunk)


def within_gate(error: float, plain: float, dtype: str) -> bool:
    """Return whether a kernel's error is explained by that of the plain implementation."""
    return error <= FACTOR[dtype] * plain + FLOOR[dtype]
