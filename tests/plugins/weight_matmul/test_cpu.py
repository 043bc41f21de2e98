"""The CPU kernel of weight_matmul against float64; a row's result must not depend on other rows."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor

from lucid_deploy.plugins.hosts.onnxruntime.build import kernels_name
from lucid_deploy.plugins.table import (
    ADAPTER_MATMUL,
    WEIGHT_MATMUL,
    WEIGHT_MATMUL_FLOAT16,
    WEIGHT_MATMUL_TRANSPOSED,
    WEIGHT_MATMUL_TRANSPOSED_FLOAT16,
)
from tests.plugins.cpu_sessions import check, run, runnable, session

KINDS = {
    "float32": WEIGHT_MATMUL,
    "float16": WEIGHT_MATMUL,
    "float32 by float16": WEIGHT_MATMUL_FLOAT16,
    "float32, transposed": WEIGHT_MATMUL_TRANSPOSED,
    "float16, transposed": WEIGHT_MATMUL_TRANSPOSED,
    "float32 by float16, transposed": WEIGHT_MATMUL_TRANSPOSED_FLOAT16,
}


def problem(rows: int, depth: int, columns: int, kind: str) -> tuple[Tensor, Tensor]:
    """Return rows and a weight that have a part in common, so that sums grow as those of a model do."""
    generator = torch.Generator().manual_seed(rows + depth + columns)
    x = torch.randn(depth, generator=generator) + torch.randn(rows, depth, generator=generator)
    w = torch.randn(depth, 1, generator=generator) + torch.randn(depth, columns, generator=generator)
    left, _, right = kind.partition(",")[0].partition(" by ")
    return x.to(getattr(torch, left)), (w / depth).to(getattr(torch, right or left))


def dtype_of(kind: str) -> str:
    return kind.replace(",", "").partition(" ")[0]


def product(library, kind: str, threads: int = 1) -> ort.InferenceSession:
    return session(KINDS[kind], library, threads, dtype_of(kind), rank=2)


def lying(kind: str, w: Tensor) -> Tensor:
    """Return a weight, depth by columns, as an operator takes it."""
    return w.T.contiguous() if "transposed" in kind else w


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 17])
@pytest.mark.parametrize("shape", [(1, 1), (65, 129), (36, 2000), (700, 401)])
def test_rows_and_sizes(library, fastest, kind, rows, shape):
    x, w = problem(rows, *shape, kind)
    exact, dense = x.double() @ w.double(), (x.float() @ w.float()).to(x.dtype)
    for name in runnable(library):
        kernels_name(library, name)
        (got,) = run(product(library, kind), x, lying(kind, w))
        assert got.dtype == x.dtype
        check(got, dense, exact, dtype_of(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("depth", "columns"), [(20, 1500), (700, 401)])
def test_a_row_does_not_depend_on_the_others_nor_on_threads(library, fastest, kind, depth, columns):
    x, w = problem(40, depth, columns, kind)
    w = lying(kind, w)
    for name in runnable(library):
        kernels_name(library, name)
        whole = run(product(library, kind, 3), x, w)[0]
        for rows in (1, 5, 9, 40):
            for threads in (1, 2):
                got = run(product(library, kind, threads), x[-rows:], w)[0]
                assert torch.equal(got, whole[-rows:]), f"{rows} rows, {threads} threads"


@pytest.mark.parametrize("kind", ["float32", "float32, transposed"])
def test_infinity_and_nan_stay_in_their_columns(library, fastest, kind):
    """Lanes after the last column, or after the depth, read what follows in memory, which must not matter."""
    for name in runnable(library):
        kernels_name(library, name)
        x, w = torch.ones(3, 66), torch.ones(66, 5)
        w[65, 4], w[64, 0] = torch.inf, torch.nan
        (got,) = run(product(library, kind), x, lying(kind, w))
        assert got[:, 0].isnan().all() and got[:, 4].isinf().all()
        assert torch.equal(got[:, 1:4], torch.full((3, 3), 66.0))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("float32", "WeightMatMul: the last axis of X and the first of W differ"),
        ("float32, transposed", "WeightMatMulTransposed: the last axes of X and W differ"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(library, kind, message):
    with pytest.raises(Exception, match=message):
        product(library, kind).run(None, {"X": np.ones((2, 3), np.float32), "W": np.ones((4, 5), np.float32)})


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (65, 5, 129), (700, 16, 401), (300, 37, 64)])
def test_adapters_of_rows(library, fastest, dtype, shape):
    (depth, rank, columns), kind = shape, getattr(torch, dtype)
    x, a = problem(3 * 4, depth, rank, dtype)
    y, b = problem(3 * 4, rank, columns, dtype)
    x, y = x.view(4, 3, depth), y[:, :1].expand(-1, columns).reshape(4, 3, columns).contiguous()
    a, b = (torch.stack([torch.zeros_like(w), w, -w]).to(kind) for w in (a, b))
    ids = torch.tensor([2, 0, 1, 2])
    exact = y.double() + x.double() @ a.double()[ids] @ b.double()[ids]
    dense = (y.float() + x.float() @ a.float()[ids] @ b.float()[ids]).to(kind)
    for name in runnable(library):
        kernels_name(library, name)
        (got,) = run(session(ADAPTER_MATMUL, library, 2, dtype), y, x, a, b, ids)
        assert torch.equal(got[1], y[1])
        check(got, dense, exact, dtype)
        for row in range(4):
            part = slice(row, row + 1)
            alone = run(session(ADAPTER_MATMUL, library, 1, dtype), y[part], x[part], a, b, ids[part])[0]
            assert torch.equal(alone, got[part])


def test_an_adapter_that_is_not_there_is_refused(library):
    y, x, a, b = (torch.zeros(shape) for shape in ((1, 1, 4), (1, 1, 3), (2, 3, 1), (2, 1, 4)))
    for wrong in (2, -1):
        with pytest.raises(Exception, match="adapter_ids is negative or beyond"):
            run(session(ADAPTER_MATMUL, library), y, x, a, b, torch.tensor([wrong]))
