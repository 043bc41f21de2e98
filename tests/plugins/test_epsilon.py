"""Epsilon matters for small keys: every implementation against an independent dense solve in NumPy.

The mean square of a key is about epsilon here, so that half or no epsilon changes the result by several percent.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lucid_deploy.plugins.decode_attention.torch_operator import decode_attention
from lucid_deploy.plugins.hosts.onnxruntime.build import kernels_name
from lucid_deploy.plugins.precondition.torch_operator import precondition
from lucid_deploy.plugins.table import DECODE_ATTENTION, DECODE_ATTENTION_FLOAT16, DECODE_ATTENTION_INT8, PRECONDITION
from tests.plugins import cpu_sessions, onnx_bodies
from tests.plugins.cpu_sessions import error
from tests.plugins.problems import keys
from tests.plugins.stored_caches import read, store

EPS = 1e-5
SIZE, TOKENS, PAST = 0.003, 70, 30
GATE = {"float64": 1e-10, "float32": 2e-6}


def dense(k: Tensor, v: Tensor, eps: float) -> Tensor:
    """Solve L Y = V with a diagonal of 1, a head at a time in float64."""
    found = np.empty(v.shape)
    for b, h in np.ndindex(*v.shape[:2]):
        key = k[b, h].double().numpy()
        unit = key / np.sqrt((key**2).mean(1, keepdims=True) + eps)
        scores = unit @ unit.T / math.sqrt(key.shape[1]) - math.sqrt(key.shape[1])
        found[b, h] = np.linalg.solve(np.tril(np.exp(scores), -1) + np.eye(len(key)), v[b, h].double().numpy())
    return torch.from_numpy(found)


def problem(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Return K, V and the exact Y."""
    k = (SIZE * keys(0.9, 1, 2, TOKENS, 16)).to(dtype)
    v = torch.randn(1, 2, TOKENS, 16, dtype=dtype, generator=torch.Generator().manual_seed(1))
    exact = dense(k, v, EPS)
    for wrong in (0.0, EPS / 2):
        assert error(dense(k, v, wrong), exact) > 0.01, "another epsilon would pass"
    return k, v, exact


def parts(k: Tensor, v: Tensor, exact: Tensor, past: int) -> tuple[Tensor, ...]:
    """Return the solve's inputs: new keys and values, and a past whose Y is exact."""
    mask = torch.ones(1, TOKENS, dtype=torch.bool)
    return k[:, :, past:], v[:, :, past:], k[:, :, :past], exact[:, :, :past].to(v.dtype), mask


def last(k: Tensor, v: Tensor, exact: Tensor, new: int = 1) -> tuple[Tensor, ...]:
    """Return decoding's inputs for the last tokens."""
    k_new, v_new, k_past, y_past, mask = parts(k, v, exact, TOKENS - new)
    return torch.ones(1, 4, new, 16, dtype=k.dtype), k_new, v_new, k_past, y_past, mask


def test_pytorchs_versions() -> None:
    k, v, exact = problem(torch.float64)
    for implementation in ("reference", "blocked"):
        for past in (0, PAST):
            found = precondition(*parts(k, v, exact, past), EPS, implementation)
            assert error(found, exact[:, :, past:]) < GATE["float64"], implementation
    for implementation in ("reference", "fused"):
        for new in (1, 5):
            found = decode_attention(*last(k, v, exact, new), EPS, implementation)[1]
            assert error(found, exact[:, :, -new:]) < GATE["float64"], implementation


def test_onnx_bodies() -> None:
    k, v, exact = problem()
    solve = onnx_bodies.single_operator(PRECONDITION)
    for past in (0, PAST):
        [found] = cpu_sessions.run(solve, *parts(k, v, exact, past))
        assert error(found, exact[:, :, past:]) < GATE["float32"]
    for new in (1, 5):
        decode = onnx_bodies.single_operator(DECODE_ATTENTION, several=new > 1)
        assert error(cpu_sessions.run(decode, *last(k, v, exact, new))[1], exact[:, :, -new:]) < GATE["float32"]


def test_cpu_kernels(library: Path, fastest: str) -> None:
    k, v, exact = problem()
    for name in cpu_sessions.runnable(library):
        kernels_name(library, name)
        for past in (0, PAST):
            [found] = cpu_sessions.run(cpu_sessions.session(PRECONDITION, library), *parts(k, v, exact, past))
            assert error(found, exact[:, :, past:]) < GATE["float32"], name
        for new in (1, 5):
            decode = cpu_sessions.session(DECODE_ATTENTION, library)
            found = cpu_sessions.run(decode, *last(k, v, exact, new))[1]
            assert error(found, exact[:, :, -new:]) < GATE["float32"], name
        for kind, operator in (("int8", DECODE_ATTENTION_INT8), ("float16", DECODE_ATTENTION_FLOAT16)):
            check_stored(cpu_sessions.session(operator, library), kind)


def check_stored(session: object, kind: str) -> None:
    """Decode over a stored cache; the exact result is computed from the stored numbers."""
    k, v, exact = problem()
    q, k_new, v_new, k_past, y_past, mask = last(k, v, exact)
    stored = store(k_past, y_past, kind)
    k_read, y_read = read(stored, torch.float64)
    wanted = decode_attention(*(x.double() for x in (q, k_new, v_new)), k_read, y_read, mask, EPS, "reference")[1]
    assert error(cpu_sessions.run(session, q, k_new, v_new, *stored, mask)[1], wanted) < GATE["float32"]  # type: ignore[arg-type]
