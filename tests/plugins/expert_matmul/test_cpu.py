"""The CPU kernel of expert_matmul against float64; a row's result must not depend on other rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lucid_deploy.plugins.expert_matmul.reference import dequantized_experts
from lucid_deploy.plugins.hosts.onnxruntime.build import kernels_name
from lucid_deploy.plugins.table import EXPERT_MATMUL, QUANTIZED_EXPERT_MATMUL, QUANTIZED_EXPERT_MATMUL_OFFSETS
from tests.plugins.cpu_sessions import check, run, runnable, session


def problem(rows: int, depth: int, columns: int, experts: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Rows that resemble each other; every third expert is chosen by nobody, and its matrix is not finite."""
    draw = torch.Generator().manual_seed(rows + depth + columns)
    x = torch.randn(depth, generator=draw) + torch.randn(rows, depth, generator=draw)
    expert = torch.randint(experts, (rows,), generator=draw) // 3 * 3
    weight = torch.randn(experts, columns, depth, generator=draw) / depth
    weight[[index for index in range(experts) if index % 3]] = torch.nan
    return x.to(dtype), expert, weight.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 1, 1), (2, 65, 129), (8, 700, 401), (33, 36, 200)])
def test_rows_and_sizes(library: Path, fastest: Any, dtype: torch.dtype, rows: int, depth: int, columns: int) -> None:
    x, expert, weight = problem(rows, depth, columns, 7, dtype)
    exact = torch.einsum("rnk,rk->rn", weight[expert].double(), x.double())
    dense = torch.einsum("rnk,rk->rn", weight[expert].float(), x.float()).to(dtype)
    name = str(dtype).removeprefix("torch.")
    for kernels in runnable(library):
        kernels_name(library, kernels)
        (found,) = run(session(EXPERT_MATMUL, library, 2, name), x, expert, weight)
        check(found, dense, exact, name)
        (alone,) = run(session(EXPERT_MATMUL, library, 1, name), x[-1:], expert[-1:], weight)
        assert torch.equal(alone, found[-1:])


def test_no_row_is_no_work_and_what_does_not_fit_is_refused(library: Path) -> None:
    x, expert, weight = problem(3, 8, 5, 7, torch.float32)
    kernel = session(EXPERT_MATMUL, library)
    assert run(kernel, x[:0], expert[:0], weight)[0].shape == (0, 5)
    for wrong in (expert + 7, expert - 7):
        with pytest.raises(Exception, match="expert is negative or not below"):
            run(kernel, x, wrong, weight)
    with pytest.raises(Exception, match="as many columns as the matrices"):
        run(kernel, x[:, 1:], expert, weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("rows", "depth", "columns", "bits", "block"), [(1, 32, 1, 4, 32), (33, 192, 41, 8, 32), (50, 1024, 301, 4, 64)]
)
def test_matrices_in_blocks(
    library: Path, fastest: Any, dtype: torch.dtype, rows: int, depth: int, columns: int, bits: int, block: int
) -> None:
    x, expert, _ = problem(rows, depth, columns, 7, dtype)
    draw = torch.Generator().manual_seed(bits)
    packed = torch.randint(256, (7, columns, depth // block, block * bits // 8), generator=draw).byte()
    scales = (torch.rand(7, columns, depth // block, generator=draw) / 64 / depth).to(dtype)
    scales[[index for index in range(7) if index % 3]] = torch.nan
    weight = dequantized_experts(packed, scales.double(), depth)
    exact = torch.einsum("rnk,rk->rn", weight[expert], x.double())
    dense = torch.einsum("rnk,rk->rn", weight[expert].float(), x.float()).to(dtype)
    name = str(dtype).removeprefix("torch.")
    for kernels in runnable(library):
        kernels_name(library, kernels)
        (found,) = run(session(QUANTIZED_EXPERT_MATMUL, library, 2, name), x, expert, packed, scales)
        check(found, dense, exact, name)
        (alone,) = run(session(QUANTIZED_EXPERT_MATMUL, library, 1, name), x[-1:], expert[-1:], packed, scales)
        assert torch.equal(alone, found[-1:])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("dtype", "stored"), [(torch.float32, "float32"), (torch.float32, ""), (torch.float16, "")])
def test_offsets_of_blocks(library: Path, fastest: Any, dtype: torch.dtype, stored: str, bits: int) -> None:
    """They are in the type of the scales, which is float16 where it is not the rows' type."""
    depth, columns, name = 192, 37, str(dtype).removeprefix("torch.")
    kind = stored or "float16"
    x, expert, _ = problem(50, depth, columns, 7, dtype)
    draw = torch.Generator().manual_seed(bits)
    packed = torch.randint(256, (7, columns, 6, 4 * bits), generator=draw).byte()
    scales, offsets = (torch.rand(2, 7, columns, 6, generator=draw) / depth).to(getattr(torch, kind))
    scales /= 2 ** (bits - 4)
    scales[1], offsets[2] = torch.nan, torch.nan  # nobody chose them
    weight = dequantized_experts(packed, scales.double(), depth)
    weight = weight + offsets.double().repeat_interleave(32, -1)
    exact = torch.einsum("rnk,rk->rn", weight[expert], x.double())
    dense = torch.einsum("rnk,rk->rn", weight[expert].float(), x.float()).to(dtype)
    inputs = packed, scales, offsets
    for kernels in runnable(library):
        kernels_name(library, kernels)
        own = session(QUANTIZED_EXPERT_MATMUL_OFFSETS, library, 2, name, scales=kind)
        (found,) = run(own, x, expert, *inputs)
        check(found, dense, exact, name)
        (alone,) = run(own, x[-1:], expert[-1:], *inputs)
        assert torch.equal(alone, found[-1:])
