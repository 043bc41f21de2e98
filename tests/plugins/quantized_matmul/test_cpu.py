"""The CPU kernel of quantized_matmul against float64 and onnxruntime's MatMulNBits."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor

from lucid_deploy.plugins.hosts.onnxruntime.build import has_dots, kernels_name
from lucid_deploy.plugins.table import (
    DOMAIN,
    QUANTIZED_MATMUL,
    QUANTIZED_MATMUL_OFFSETS,
    QUANTIZED_MATMUL_ZERO_POINTS,
    VERSION,
)
from lucid_deploy.runtimes.torch.quantized_activations import round_to_int8
from tests.plugins.cpu_sessions import FACTOR, FLOOR, check, error, run, runnable, session

KINDS = tuple(itertools.product((4, 8), ("", "zero_points", "offsets")))  # bits, and what moves a block
# Depth, columns, block: partly filled panels and lines, blocks of a quarter of a line to several lines.
SHAPES = ((32, 1, 32), (48, 17, 16), (256, 33, 64), (512, 5, 256), (1056, 50, 32))


class Problem:
    """Rows, and a weight in blocks; both have a part in common, so that sums grow as those of a model do.

    Inputs lie near whole multiples of a block's step, so that every way to divide rounds them alike.
    """

    def __init__(self, rows: int, shape: tuple[int, int, int], bits: int, moved: str, dtype: str, scales="") -> None:
        depth, columns, self.block = shape
        self.bits, blocks = bits, depth // self.block
        rng = np.random.default_rng(rows + depth + columns + bits)
        whole = np.clip(rng.integers(-40, 41, (1, blocks, self.block)) + rng.integers(-60, 61, (rows, 1, 1)), -99, 99)
        whole = whole + rng.uniform(-0.3, 0.3, whole.shape)
        whole[..., 0] = 127
        steps = rng.uniform(0.01, 0.02, (rows, blocks, 1))
        self.x = torch.from_numpy((whole * steps).reshape(rows, depth)).to(getattr(torch, dtype))
        self.numbers = rng.integers(0, 1 << bits, (columns, blocks, self.block), dtype=np.uint8)
        self.scales = torch.from_numpy(rng.uniform(0.01, 0.02, (columns, blocks)))
        self.scales = self.scales.to(getattr(torch, scales or dtype))
        self.zeros = rng.integers(0, 1 << bits, (columns, blocks), dtype=np.uint8) if moved == "zero_points" else None
        offsets = torch.from_numpy(rng.uniform(-0.1, 0.1, (blocks, columns)))
        self.offsets = offsets.to(self.scales.dtype) if moved == "offsets" else None

    @property
    def operator(self):
        if self.offsets is not None:
            return QUANTIZED_MATMUL_OFFSETS
        return QUANTIZED_MATMUL if self.zeros is None else QUANTIZED_MATMUL_ZERO_POINTS

    @property
    def packed(self) -> list[Tensor]:
        """Return the weight as the operators read it: numbers, scales, and zero points or offsets if it has them."""
        pieces = [torch.from_numpy(self._bytes(self.numbers)), self.scales]
        if self.offsets is not None:
            return [*pieces, self.offsets]
        return pieces if self.zeros is None else [*pieces, torch.from_numpy(self._bytes(self.zeros))]

    def _bytes(self, numbers: np.ndarray) -> np.ndarray:
        if self.bits == 8:
            return numbers
        even = np.pad(numbers, [(0, 0)] * (numbers.ndim - 1) + [(0, numbers.shape[-1] % 2)])
        return even[..., ::2] | even[..., 1::2] << 4

    def product(self, dtype: torch.dtype) -> Tensor:
        """Return the product of the rounded rows and the weight, computed in a type; of offsets that of the rows."""
        numbers, zeros, x = self._parts(dtype)
        product = x @ (numbers - zeros).flatten(1).T
        if self.offsets is None:
            return product
        return product + self.x.to(dtype).unflatten(1, (-1, self.block)).sum(dim=2) @ self.offsets.to(dtype)

    def product_apart(self) -> Tensor:
        """Return the product in float32, with the zero points subtracted at the end, as onnxruntime does."""
        numbers, zeros, x = self._parts(torch.float32)
        return x @ numbers.flatten(1).T - x @ zeros.flatten(1).T

    def _parts(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        half = np.full(self.scales.shape, 1 << (self.bits - 1))
        scales = self.scales.to(dtype)[..., None]
        zeros = torch.from_numpy(half if self.zeros is None else self.zeros)[..., None].to(dtype) * scales
        numbers = torch.from_numpy(self.numbers).to(dtype) * scales
        return numbers, zeros.expand(numbers.shape), round_to_int8(self.x.float(), self.block).to(dtype)


def with_dots(library: Path) -> list[str]:
    """Return the kernels that this processor can run and that have this product; one of them is selected afterwards."""
    return [name for name in runnable(library) if kernels_name(library, name) and has_dots(library)]


def constant_session(problem: Problem, library: Path, weight: list[Tensor], file: Path | None = None):
    """Return a session whose weight is constant, on the memory of the tensors, as those of an artifact are.

    The file is for large weights: the session would copy those that are in the graph.
    """
    operator, make, tensors = problem.operator, onnx.helper, weight
    names = operator.input_names
    info = make.make_tensor_value_info("X", make.np_dtype_to_tensor_dtype(problem.x.numpy().dtype), ["rows", "depth"])
    out = make.make_tensor_value_info("O", info.type.tensor_type.elem_type, ["rows", "columns"])
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.register_custom_ops_library(str(library))
    stored = [onnx.numpy_helper.from_array(x.numpy(), name) for name, x in zip(names[1:], tensors, strict=True)]
    values = [ort.OrtValue.ortvalue_from_numpy(x.numpy()) for x in tensors]
    for name, value in zip(names[1:], values, strict=True):
        options.add_initializer(name, value)
    node = make.make_node(operator.name, names, operator.output_names, domain=DOMAIN)
    graph = make.make_graph([node], "product", [info], [out], stored)
    opsets = [make.make_opsetid("", 21), make.make_opsetid(DOMAIN, VERSION)]
    model = make.make_model(graph, opset_imports=opsets, ir_version=10)
    if file is not None:
        onnx.save_model(model, file, save_as_external_data=True, location=file.stem, size_threshold=0)
    path = model.SerializeToString() if file is None else str(file)
    of = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return of, (tensors, values)  # what the session reads


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("bits", "moved"), KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_and_sizes(library, fastest, shape, bits, moved, dtype):
    for rows, scales in ((1, ""), (3, ""), (13, ""), (1, "float16"), (13, "float16")):
        if scales and (moved != "offsets" or dtype == scales):
            continue
        problem = Problem(rows, shape, bits, moved, dtype, scales)
        exact, dense = problem.product(torch.float64), problem.product(torch.float32).to(problem.x.dtype)
        for name in with_dots(library):
            kernels_name(library, name)
            of = session(problem.operator, library, 1, dtype, rank=2, scales=scales)
            (got,) = run(of, problem.x, *problem.packed)
            assert got.dtype == problem.x.dtype
            check(got, dense, exact, dtype)
            constant, _kept = constant_session(problem, library, problem.packed)
            assert torch.equal(run(constant, problem.x)[0], got), "packed once and packed for this product"


def test_sessions_share_a_packed_weight_but_not_one_that_has_changed(library, tmp_path):
    problem = Problem(2, (1024, 1 << 15, 64), 8, "", "float32")
    weight, sessions, used = problem.packed, [], []
    for number in range(3):
        before = rss()
        sessions.append(constant_session(problem, library, weight, tmp_path / f"{number}.onnx"))
        used.append(rss() - before)
    size = weight[0].numel()
    assert used[0] > size / 2 > used[2]
    first = run(sessions[0][0], problem.x)[0]
    assert torch.equal(run(sessions[2][0], problem.x)[0], first)
    weight[0][:] = 128  # the number that stands for zero
    changed, _kept = constant_session(problem, library, weight, tmp_path / "changed.onnx")
    assert not run(changed, problem.x)[0].any()
    assert torch.equal(run(sessions[0][0], problem.x)[0], first)


def rss() -> int:
    """Return the bytes of this process's memory that are not of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.parametrize(("bits", "moved"), [kind for kind in KINDS if kind[1] != "offsets"])
@pytest.mark.parametrize("rows", [1, 7, 40])
def test_onnxruntimes_own_operator_agrees(library, fastest, bits, moved, rows):
    shape = depth, columns, block = 1024, 300, 32
    problem = Problem(rows, shape, bits, moved, "float32")
    make, names = onnx.helper, ["x", "w", "scales", "zeros"][: 1 + len(problem.packed)]
    attributes = {"K": depth, "N": columns, "bits": bits, "block_size": block, "accuracy_level": 4}
    node = make.make_node("MatMulNBits", names, ["o"], domain="com.microsoft", **attributes)
    weights = [onnx.numpy_helper.from_array(x.numpy(), name) for x, name in zip(problem.packed, names[1:], strict=True)]
    values = [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("x", "o")]
    values[0] = make.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["rows", depth])
    graph = make.make_graph([node], "product", values[:1], values[1:], weights)
    opsets = [make.make_opsetid("", 21), make.make_opsetid("com.microsoft", 1)]
    model = make.make_model(graph, opset_imports=opsets, ir_version=10)
    (theirs,) = run(ort.InferenceSession(model.SerializeToString()), problem.x)
    (ours,) = run(session(problem.operator, library, 1, "float32", rank=2), problem.x, *problem.packed)
    exact = problem.product(torch.float64)
    assert error(ours, exact) <= FACTOR * max(error(theirs, exact), FLOOR["float32"])
    assert error(theirs, exact) <= FACTOR * max(error(problem.product_apart(), exact), FLOOR["float32"])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("bits", "moved"), KINDS)
@pytest.mark.parametrize("shape", [(96, 40, 32), (512, 300, 32)])
def test_a_row_does_not_depend_on_the_others_nor_on_threads(library, fastest, shape, bits, moved, dtype):
    problem = Problem(40, shape, bits, moved, dtype)
    for name in with_dots(library):
        kernels_name(library, name)
        whole = run(session(problem.operator, library, 3, dtype, rank=2), problem.x, *problem.packed)[0]
        for rows, threads in itertools.product((1, 3, 12, 25), (1, 2)):
            of = session(problem.operator, library, threads, dtype, rank=2)
            (got,) = run(of, problem.x[-rows:], *problem.packed)
            assert torch.equal(got, whole[-rows:]), f"{name}, {rows} rows, {threads} threads"


@pytest.mark.parametrize("bits", [4, 8])
def test_ties_are_rounded_to_even(library, fastest, bits):
    """The block's step is 1, so inputs are integers and halves; each column of the weight selects one of them."""
    x = torch.zeros(1, 32)
    x[0, :6] = torch.tensor([127, 0.5, 1.5, 2.5, -0.5, -1.5])
    half = 1 << (bits - 1)
    numbers = np.full((6, 1, 32), half, dtype=np.uint8)
    numbers[range(6), 0, range(6)] = half + 1
    stored = numbers if bits == 8 else numbers[..., ::2] | numbers[..., 1::2] << 4
    for name in with_dots(library):
        kernels_name(library, name)
        for rows in (1, 5):
            of = session(QUANTIZED_MATMUL, library, 1, "float32", rank=2)
            (got,) = run(of, x.expand(rows, -1), torch.from_numpy(stored), torch.ones(6, 1))
            assert torch.equal(got, torch.tensor([127.0, 0, 2, 2, 0, -2]).expand(rows, -1))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("moved", ["", "offsets"])
def test_nan_and_infinity_stay_in_their_row(library, fastest, bits, bad, moved):
    problem = Problem(5, (96, 40, 32), bits, moved, "float32")
    for name in with_dots(library):
        kernels_name(library, name)
        for rows in (1, 5):
            of, x = session(problem.operator, library, 1, "float32", rank=2), problem.x[-rows:].clone()
            (before,) = run(of, x, *problem.packed)
            x[-1, 40] = bad
            (got,) = run(of, x, *problem.packed)
            assert not got[-1].isfinite().any()
            assert torch.equal(got[:-1], before[:-1])


@pytest.mark.parametrize(
    ("moved", "changed", "shape", "message"),
    [
        ("zero_points", 0, (2, 64), "QuantizedMatMulZeroPoints: the blocks of W must cover"),
        ("zero_points", 0, (2, 0), "the blocks of W must cover"),
        ("zero_points", 1, (40, 12, 4), "the blocks of W must cover the last axis of X, each with a multiple of 16"),
        ("zero_points", 2, (40, 2), "scales needs one number per block of W"),
        ("zero_points", 2, (39, 3), "scales needs one number per block of W"),
        ("zero_points", 3, (40, 1), "zero_points needs one number per block of W"),
        ("offsets", 3, (40, 3), "QuantizedMatMulOffsets: offsets needs one number per block of W"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    library: Path, moved: str, changed: int, shape: tuple[int, ...], message: str
) -> None:
    problem = Problem(2, (96, 40, 32), 4, moved, "float32")
    given = [problem.x, *problem.packed]
    given[changed] = torch.ones(shape, dtype=given[changed].dtype)
    with pytest.raises(Exception, match=message):
        run(session(problem.operator, library, 1, "float32", rank=2), *given)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_largest_products_do_not_saturate(library, fastest, bits):
    most = (1 << bits) - 1
    for name, sign in itertools.product(with_dots(library), (1.0, -1.0)):
        kernels_name(library, name)
        of = session(QUANTIZED_MATMUL, library, 1, "float32", rank=2)
        (got,) = run(
            of, torch.full((1, 128), sign), torch.full((1, 1, 16 * bits), 255, dtype=torch.uint8), torch.ones(1, 1)
        )
        assert got.item() == pytest.approx(sign * 128 * (most - (most + 1) // 2), rel=1e-6)


def test_blocks_whose_sums_would_overflow_are_refused(library):
    of = session(QUANTIZED_MATMUL, library, 1, "float32", rank=2)
    for depth in (1 << 15, 1 << 16):  # numbers of one block; the largest sum is of 255 - 128 times 127
        given = torch.ones(1, depth), torch.full((1, 1, depth), 255, dtype=torch.uint8), torch.ones(1, 1)
        if depth == 1 << 15:
            assert run(of, *given)[0].item() == pytest.approx(127 * depth, rel=1e-6)
        else:
            with pytest.raises(Exception, match="a block of W has more than 32768 numbers"):
                run(of, *given)


def test_kernels_without_the_product_are_refused(library, fastest):
    problem = Problem(2, (96, 40, 32), 4, "", "float32")
    kernels_name(library, "portable")
    with pytest.raises(Exception, match="QuantizedMatMul: it needs a processor with AVX2, or AVX-512 VNNI"):
        run(session(QUANTIZED_MATMUL, library, 1, "float32", rank=2), problem.x, *problem.packed)
