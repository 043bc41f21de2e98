"""The products of quantized_matmul in AMX's tiles, whose instructions are emulated, are those of AVX-512 VNNI."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import pytest
import torch

from lucid_deploy.plugins.hosts.compiler import find_compiler, run_compiler
from lucid_deploy.plugins.hosts.onnxruntime.build import FLAGS, ORT_ABI, PLUGINS, has_dots, kernels_name
from tests.plugins.quantized_matmul.test_cpu import KINDS, Problem

# QuantizedMatMulArguments of cpu.h.
POINTER, SIZE = ctypes.c_void_p, ctypes.c_size_t
WEIGHT = {name: POINTER for name in ("numbers", "scales", "zero_points", "offsets")}
WEIGHT |= {name: SIZE for name in ("columns", "blocks", "block_bytes", "zero_bytes", "scale_bytes")}


class Arguments(ctypes.Structure):
    _fields_ = [("x", POINTER), *WEIGHT.items(), ("panels", POINTER), ("o", POINTER)]
    _fields_ += [(name, SIZE) for name in ("rows", "depth", "bits")]


@pytest.fixture(scope="module")
def emulated(cpu_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the library of AVX-512 kernels with emulated tiles."""
    if kernels_name(cpu_library) != "avx512" or not has_dots(cpu_library):
        pytest.skip("a processor without AVX-512 VNNI")
    path = tmp_path_factory.mktemp("amx") / "emulated.so"
    source = Path(__file__).with_name("emulated_tiles.cpp")
    flags = [flag for flag in FLAGS if flag != "-O3"]
    run_compiler([find_compiler(), *flags, "-O1", f"-DLUCID_ORT_ABI={ORT_ABI}", "-I", str(PLUGINS), str(source)], path)
    return path


def product(library: Path, problem: Problem, granted: bool) -> tuple[torch.Tensor, int]:
    """Return a product, and the number of tiles' products, negative if tiles are in use afterwards."""
    numbers, scales, *moved = problem.packed
    columns, blocks, block_bytes = numbers.shape
    rows, depth = problem.x.shape
    out = torch.full((rows, columns), torch.nan)
    given = Arguments(
        x=problem.x.data_ptr(), numbers=numbers.data_ptr(), scales=scales.data_ptr(), o=out.data_ptr(), columns=columns,
        blocks=blocks, block_bytes=block_bytes, scale_bytes=scales.element_size(), rows=rows, depth=depth,
        bits=problem.bits,
    )  # fmt: skip
    if problem.offsets is not None:
        given.offsets = moved[0].data_ptr()
    elif moved:
        given.zero_points, given.zero_bytes = moved[0].data_ptr(), moved[0].shape[1]
    call = ctypes.CDLL(str(library)).product
    call.restype = ctypes.c_long
    return out, call(ctypes.byref(given), granted)


@pytest.mark.parametrize(("bits", "moved"), KINDS)
@pytest.mark.parametrize("scales", ["float32", "float16"])
def test_products_in_tiles_equal_those_of_vnni(emulated, bits, moved, scales):
    for rows, shape in ((13, (48, 17, 16)), (16, (1056, 50, 32)), (33, (96, 33, 48)), (40, (640, 40, 128))):
        problem = Problem(rows, shape, bits, moved, "float32", scales)
        got, tiles = product(emulated, problem, True)
        assert tiles > 0
        whole, alone = problem.x, []
        for row in range(rows):
            problem.x = whole[row : row + 1]  # too few rows for tiles
            alone.append(product(emulated, problem, True))
        assert torch.equal(got, torch.cat([one for one, _ in alone])), f"{rows} rows, {shape}"
        assert not any(tiles for _, tiles in alone)


def test_without_permission_products_need_no_tiles(emulated, tmp_path):
    refused = shutil.copy(emulated, tmp_path / "refused.so")  # loaded apart: the first product asks for permission
    problem = Problem(16, (64, 16, 32), 4, "", "float32")
    expected, used = product(emulated, problem, True)
    got, tiles = product(Path(refused), problem, False)
    assert used > 0 and tiles == 0
    assert torch.equal(got, expected)
