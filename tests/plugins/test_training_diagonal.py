"""The training diagonal: every implementation, in one call, in chunks and token by token.

The oracle is an independent dense solve in NumPy. Keys are small enough for the diagonal to matter: it is about 0.9 at
an RMS of 0.03, and about 0.01 at 0.003.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lucid_deploy.plugins.decode_attention.torch_operator import decode_attention
from lucid_deploy.plugins.hosts.onnxruntime.build import kernels_name
from lucid_deploy.plugins.precondition.torch_operator import precondition
from lucid_deploy.plugins.table import DECODE_ATTENTION, PRECONDITION
from tests.plugins import cpu_sessions, onnx_bodies
from tests.plugins.cpu_sessions import check, error, keys

EPS = 1e-5
H, G, D = 2, 3, 68
KEYS = [(0.03, 1.0), (0.003, 0.95), (1.0, 0.99)]  # RMS, correlation (1.0: four keys repeated)


@dataclass(frozen=True)
class Implementation:
    """A solve and a decode step, as :func:`precondition` and :func:`decode_attention` take tensors."""

    solve: Callable[..., Tensor]
    decode: Callable[..., tuple[Tensor, Tensor]]


def in_pytorch(solve: str, decode: str) -> Implementation:
    return Implementation(
        lambda *tensors: precondition(*tensors, EPS, solve, True),
        lambda *tensors: decode_attention(*tensors, EPS, decode, True),
    )


def in_onnx_bodies(dtype: str = "float32") -> Implementation:
    solve, decode = (onnx_bodies.single_operator(each, dtype, True) for each in (PRECONDITION, DECODE_ATTENTION))
    return Implementation(lambda *x: cpu_sessions.run(solve, *x)[0], lambda *x: tuple(cpu_sessions.run(decode, *x)))


def in_library(library: Path, dtype: str = "float32") -> Implementation:
    solve, decode = (cpu_sessions.session(each, library, 2, dtype, 1.0) for each in (PRECONDITION, DECODE_ATTENTION))
    return Implementation(lambda *x: cpu_sessions.run(solve, *x)[0], lambda *x: tuple(cpu_sessions.run(decode, *x)))


def implementations(library: Path, dtype: str = "float32") -> dict[str, Implementation]:
    return {
        "reference": in_pytorch("reference", "reference"),
        "blocked": in_pytorch("blocked", "fused"),
        "bodies": in_onnx_bodies(dtype),
        "library": in_library(library, dtype),
    }


def dense(k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Solve L Y = V in float64 with the diagonal of the formula, a head at a time; padded rows are the identity's."""
    found = np.empty(v.shape)
    for b, h in np.ndindex(*v.shape[:2]):
        key, token = k[b, h].double().numpy(), mask[b].numpy()
        unit = key / np.sqrt((key**2).mean(1, keepdims=True) + EPS)
        lower = np.tril(np.exp(unit @ unit.T / math.sqrt(D) - math.sqrt(D)))
        lower = np.where(np.outer(token, token), lower, np.eye(len(key)))
        found[b, h] = np.linalg.solve(lower, v[b, h].double().numpy())
    return torch.from_numpy(found)


def problem(scale: float, correlation: float, tokens: int = 140, batch: int = 1, dtype: str = "float32"):
    generator = torch.Generator().manual_seed(3)
    k = scale * keys(generator, batch, H, tokens, D, correlation)
    v = torch.randn(batch, H, tokens, D, generator=generator)
    q = torch.randn(batch, H * G, tokens, D, generator=generator)
    return tuple(x.to(getattr(torch, dtype)) for x in (q, k, v))


def fed(made: Implementation, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, sizes: list[int]) -> Tensor:
    """Return Y of all tokens, computed in pieces of these sizes; pieces of one token are decoded."""
    y, start = v[:, :, :0], 0
    for size in sizes:
        new, old, end = slice(start, start + size), slice(0, start), start + size
        if size == 1 and start:
            given = (q[:, :, new], k[:, :, new], v[:, :, new], k[:, :, old], y, mask[:, :end])
            rows = made.decode(*(x.contiguous() for x in given))[1]
        else:
            given = (k[:, :, new], v[:, :, new], k[:, :, old], y, mask[:, :end])
            rows = made.solve(*(x.contiguous() for x in given))
        y, start = torch.cat([y, rows], dim=2), end
    return y


@pytest.mark.parametrize(("scale", "correlation"), KEYS)
def test_whole_chunks_and_tokens_agree_with_a_dense_solve(library, fastest, scale, correlation):
    q, k, v = problem(scale, correlation)
    tokens = k.shape[2]
    mask = torch.ones(1, tokens, dtype=torch.bool)
    exact, plain = dense(k, v, mask), precondition(k, v, None, None, mask, EPS, "reference", True)
    gap = error(precondition(k.double(), v.double(), eps=EPS), exact)
    assert gap > 1e-5, "with 1 on the diagonal the result is another"
    for sizes in ([tokens], [1, 7, 64, 65, 1, 2], [100, *[1] * 40]):
        for name, made in implementations(library).items():
            found = fed(made, q, k, v, mask, sizes)
            check(found, plain, exact)
            assert error(found, exact) < 0.1 * gap, f"{name} is no better than 1 on the diagonal"
    for name in cpu_sessions.runnable(library):
        kernels_name(library, name)
        check(fed(in_library(library), q, k, v, mask, [100, 1, 39]), plain, exact)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_padded_rows_keep_their_values(library, dtype):
    q, k, v = problem(0.03, 0.95, tokens=140, batch=2, dtype=dtype)
    mask = torch.ones(2, 140, dtype=torch.bool)
    mask[0, :33] = False  # left, more than a block
    mask[1, [50, 90, 139]] = False  # a hole in each way of feeding; the last one is decoded
    exact, plain = dense(k, v, mask), precondition(k, v, None, None, mask, EPS, "reference", True)
    token = mask[:, None, :, None]
    for sizes in ([140], [64, 75, 1]):
        for made in implementations(library, dtype).values():
            found = fed(made, q, k, v, mask, sizes)
            assert torch.equal(found.where(~token, v), v), "a padded row's Y is its V"
            check(found, plain, exact, dtype)


def test_a_decoded_token_attends_to_itself(library):
    """O is softmax attention over Y with the new token's Y, which is divided by the diagonal."""
    q, k, v = problem(0.03, 0.9, tokens=70)
    mask = torch.ones(1, 70, dtype=torch.bool)
    y = dense(k, v, mask)
    scores = q[:, :, -1:].double() @ k.double().repeat_interleave(G, 1).mT / math.sqrt(D)
    exact = scores.softmax(-1) @ y.repeat_interleave(G, 1)
    given = (q[:, :, -1:], k[:, :, -1:], v[:, :, -1:], k[:, :, :-1], y[:, :, :-1].float(), mask)
    plain = in_pytorch("reference", "reference").decode(*given)[0]
    for made in implementations(library).values():
        check(made.decode(*(x.contiguous() for x in given))[0], plain, exact)


def test_a_zero_key_has_the_smallest_diagonal(library):
    """L_ii is then exp(−√d), here 1/3800, and must keep its precision."""
    q, k, v = problem(0.03, 0.9, tokens=70)
    k[:, :, [0, 40, 69]] = 0.0
    mask = torch.ones(1, 70, dtype=torch.bool)
    exact = dense(k, v, mask)
    assert float(exact.abs().max()) > 1000
    gate = 3 * math.sqrt(D) * 2.0**-24  # exponents of up to √d are rounded to float32; the dense path divides instead
    for sizes in ([70], [69, 1]):
        for made in implementations(library).values():
            assert error(fed(made, q, k, v, mask, sizes), exact) < gate


def test_gradients_with_the_training_diagonal():
    k = 0.01 * keys(torch.Generator().manual_seed(0), 1, 1, 9, 4, 0.9).double()
    v = torch.randn(1, 1, 9, 4, dtype=torch.float64, requires_grad=True)
    for implementation in ("reference", "blocked"):
        assert torch.autograd.gradcheck(
            lambda k, v, made=implementation: precondition(k, v, None, None, None, EPS, made, True),
            (k.requires_grad_(), v),
            eps=1e-8,
            atol=1e-3,
            rtol=1e-3,
        )
