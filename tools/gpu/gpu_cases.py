"""What ``gpu_check.py`` does on the GPU: compare kernels with float64, time calls. Imports PyTorch and Triton."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lucid_deploy.plugins.decode_attention.reference import decode_attention_reference
from lucid_deploy.plugins.precondition.reference import precondition_reference

EPS = 1e-5
GROUPS = 4  # query heads that share a key/value head when decoding
DEVICE = "cuda"


@dataclass(frozen=True)
class Accuracy:
    """One comparison with float64: kernel, type, head width, correlation of keys, tokens, and padding in the mask."""

    kernel: str
    dtype: str
    width: int
    correlation: float
    new: int
    past: int
    padded: bool = False


@dataclass(frozen=True)
class Shape:
    """One measurement of a kernel.

    ``solve`` preconditions ``tokens`` new tokens. After ``tokens`` cached ones, ``decode`` runs 1, ``verify`` ``new``.
    """

    kernel: str
    heads: int
    tokens: int
    width: int
    dtype: str
    new: int = 1


def make_keys(heads: int, tokens: int, width: int, correlation: float) -> Tensor:
    """Return correlated keys ``(1, heads, tokens, width)``: with independent keys a wrong solve would pass."""
    common = torch.randn(1, heads, 1, width, device=DEVICE)
    own = torch.randn(1, heads, tokens, width, device=DEVICE)
    return correlation**0.5 * common + (1 - correlation) ** 0.5 * own


class TorchGpu:
    """The first GPU, as PyTorch sees it.

    Raises:
        RuntimeError: PyTorch sees no GPU.
    """

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise RuntimeError("PyTorch sees no GPU")
        torch.manual_seed(0)
        major, minor = torch.cuda.get_device_capability()
        self.name, self.capability = torch.cuda.get_device_name(), 10 * major + minor

    def describe(self) -> dict[str, Any]:
        """Return what results depend on: the card, its memory and the versions of CUDA and Triton."""
        import triton

        properties = torch.cuda.get_device_properties(0)
        return {
            "card": self.name,
            "compute_capability": self.capability,
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "triton": triton.__version__,
        }

    def error(self, case: Accuracy) -> float:
        """Return the kernel's relative error against float64, infinite if anything is not finite."""
        dtype = getattr(torch, case.dtype)
        k = make_keys(4, case.past + case.new, case.width, case.correlation).to(dtype)
        v = torch.randn_like(k)
        past, new = slice(0, case.past), slice(case.past, None)
        mask = torch.ones(1, case.past + case.new, dtype=torch.bool, device=DEVICE)
        if case.padded:
            mask[:, : max(1, mask.shape[1] // 3)] = False
            mask[:, -1] = True
        cache = (k[:, :, past].contiguous(), v[:, :, past].contiguous())
        fresh = (k[:, :, new].contiguous(), v[:, :, new].contiguous())
        run = self._solve if case.kernel == "solve" else self._decode
        return max(_relative(found, wanted) for found, wanted in run(fresh, cache, mask))

    def _solve(self, fresh: tuple[Tensor, Tensor], cache: tuple[Tensor, Tensor], mask: Tensor) -> list[Any]:
        from lucid_deploy.plugins.hosts.triton.launch import precondition

        exact = precondition_reference(*(x.double() for x in (*fresh, *cache)), mask, EPS)
        return [(precondition(*fresh, *cache, mask, EPS), exact)]

    def _decode(self, fresh: tuple[Tensor, Tensor], cache: tuple[Tensor, Tensor], mask: Tensor) -> list[Any]:
        from lucid_deploy.plugins.hosts.triton.launch import decode_attention

        key, value = fresh
        q = torch.randn(1, GROUPS * key.shape[1], *key.shape[2:], device=DEVICE).to(key.dtype)
        exact = decode_attention_reference(*(x.double() for x in (q, key, value, *cache)), mask, EPS)
        return list(zip(decode_attention(q, key, value, *cache, mask, EPS), exact, strict=True))

    def calls(self, shape: Shape) -> dict[str, Callable[[], Any] | str]:
        """Return the calls to time, by name; for a call that cannot run, a text that says why."""
        dtype = getattr(torch, shape.dtype)
        k = make_keys(shape.heads, shape.tokens + shape.new, shape.width, 0.9).to(dtype)
        v = torch.randn_like(k)
        if shape.kernel == "decode":
            return _decode_calls(k, v)
        if shape.kernel == "verify":
            return {"lucid": _decode_call(k, v, shape.new), "one": _decode_call(k, v, 1)}
        return self._solve_calls(k[:, :, 1:].contiguous(), v[:, :, 1:].contiguous())

    def _solve_calls(self, k: Tensor, v: Tensor) -> dict[str, Callable[[], Any] | str]:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        from lucid_deploy.plugins.hosts.triton.launch import precondition

        q = torch.randn_like(k)

        def flash() -> Tensor:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True)

        needed = 4 * 4 * k.shape[1] * k.shape[2] ** 2  # bytes of four float32 matrices (heads, tokens, tokens)
        free = torch.cuda.mem_get_info()[0]
        dense: Callable[[], Any] | str = (
            f"needs {needed / 2**30:.0f} GiB" if needed > free else (lambda: dense_solve(k, v))
        )
        return {"lucid": lambda: precondition(k, v), "flash": flash, "dense": dense}

    def milliseconds(self, call: Callable[[], Any]) -> float:
        """Return the median time of a call."""
        from triton.testing import do_bench

        return float(do_bench(call, return_mode="median"))


def _decode_calls(k: Tensor, v: Tensor) -> dict[str, Callable[[], Any] | str]:
    """Return both calls, over the same cache; the query heads of a key/value head are the rows of one matrix."""
    rows = torch.randn(1, k.shape[1], GROUPS, k.shape[3], device=DEVICE).to(k.dtype)
    return {"lucid": _decode_call(k, v, 1), "standard": lambda: F.scaled_dot_product_attention(rows, k, v)}


def _decode_call(k: Tensor, v: Tensor, new: int) -> Callable[[], Any]:
    """Return a step that decodes the last ``new`` tokens after all others."""
    from lucid_deploy.plugins.hosts.triton.launch import decode_attention

    q = torch.randn(1, GROUPS * k.shape[1], new, k.shape[3], device=DEVICE).to(k.dtype)
    fresh, cache = ([each[:, :, part].contiguous() for each in (k, v)] for part in (slice(-new, None), slice(-new)))
    return lambda: decode_attention(q, *fresh, *cache)


def dense_solve(k: Tensor, v: Tensor) -> Tensor:
    """Solve as the published code does: build the whole matrix in float32 and call ``solve_triangular``."""
    width = k.shape[3]
    keys = k.float() * torch.rsqrt(k.float().square().mean(-1, keepdim=True) + EPS)
    matrix = torch.exp(keys @ keys.mT / math.sqrt(width) - math.sqrt(width)).tril()
    return torch.linalg.solve_triangular(matrix, v.float(), upper=False, unitriangular=True).to(v.dtype)


def _relative(found: Tensor, wanted: Tensor) -> float:
    if not torch.isfinite(found).all():
        return math.inf
    return float((found.double() - wanted).norm() / wanted.norm())
