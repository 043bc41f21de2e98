"""Matrix multiplication by block-quantized weights from memory: the library's beside onnxruntime's MatMulNBits.

The weights have one shape and are more than a cache holds; a run multiplies each once by the same rows, whose values
are rounded to 8 bits. The two run in turn, round by round. The share of the peak compares with the multiplications per
second that AVX-512 VNNI, or AVX2, reaches in registers, measured at the start.
"""

from __future__ import annotations

import ctypes
import itertools
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from common import write_result
from library_products import LIBRARY, STANDARD, Array, check, race, sessions

from lucid_deploy.bench.report import paired_ratio
from lucid_deploy.export.operators import OPSET
from lucid_deploy.plugins.hosts.compiler import find_compiler
from lucid_deploy.plugins.hosts.onnxruntime.build import build_ort_library, has_dots
from lucid_deploy.runtimes.passes.library_kernels import use_quantized_matmul

ELEMENTS = 48 * 1024 * 2816  # of all weights of a graph


def write_graph(folder: Path, bits: int, block: int, depth: int, columns: int) -> Path:
    """Write a graph that multiplies ``x`` by all weights; outputs: each product's largest value, and ``product_0``."""
    count = ELEMENTS // (depth * columns)
    attributes = {"K": depth, "N": columns, "bits": bits, "block_size": block, "accuracy_level": 4}
    make, rng, nodes, weights = onnx.helper, np.random.default_rng(0), [], []
    for i in range(count):
        numbers = rng.integers(0, 256, (columns, depth // block, block * bits // 8), dtype=np.uint8)
        scales = rng.uniform(0.5, 1, (columns, depth // block)).astype(np.float32) / 2**bits / depth**0.5
        weights += [onnx.numpy_helper.from_array(numbers, f"w{i}"), onnx.numpy_helper.from_array(scales, f"s{i}")]
        inputs = ["x", f"w{i}", f"s{i}"]
        nodes.append(make.make_node("MatMulNBits", inputs, [f"product_{i}"], domain="com.microsoft", **attributes))
        nodes.append(make.make_node("ReduceMax", [f"product_{i}"], [f"most_{i}"], keepdims=0))
    value = make.make_tensor_value_info
    outputs = [value(f"most_{i}", onnx.TensorProto.FLOAT, []) for i in range(count)]
    outputs.append(value("product_0", onnx.TensorProto.FLOAT, ["rows", columns]))
    inputs = [value("x", onnx.TensorProto.FLOAT, ["rows", depth])]
    graph = make.make_graph(nodes, "products", inputs, outputs, weights)
    opsets = [make.make_opsetid("", OPSET), make.make_opsetid("com.microsoft", 1)]
    path = folder / f"int{bits}-{depth}-{columns}.onnx"
    model = make.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location=path.stem + ".bin")
    return path


def rounded_rows(rows: int, depth: int, block: int) -> Array:
    """Return rows of whole numbers with a 127 in every block, so that rounding them to 8 bits changes nothing."""
    x = np.random.default_rng(1).integers(-127, 128, (rows, depth)).astype(np.float32)
    x[:, ::block] = 127
    return x


def dequantized(path: Path, bits: int) -> Array:
    """Return the first weight of a graph, float64 ``(depth, columns)``."""
    numbers, scales = (onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer[:2])
    if bits == 4:
        numbers = np.stack([numbers & 15, numbers >> 4], axis=-1).reshape(*numbers.shape[:2], -1)
    weight = (numbers.astype(np.float64) - 2 ** (bits - 1)) * scales[..., None]
    return weight.reshape(len(weight), -1).T


PEAK = """
#include <immintrin.h>
#include <time.h>
#ifdef __AVX512VNNI__
typedef __m512i Vector;
static Vector dot(Vector a, Vector w, Vector x) { return _mm512_dpbusd_epi32(a, w, x); }
#else
typedef __m256i Vector;
static Vector dot(Vector a, Vector w, Vector x) { return _mm256_add_epi16(a, _mm256_maddubs_epi16(w, x)); }
#endif
int products(void) { return sizeof(Vector); }
double seconds_of_dots(long count) {  // 12 at a time, which do not wait for each other
    Vector a[12], w = (Vector){3}, x = (Vector){5};
    struct timespec from, to;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &from);
#pragma GCC unroll 12
    for (int r = 0; r < 12; ++r) a[r] = w;
    for (long i = 0; i < count / 12; ++i)
#pragma GCC unroll 12
        for (int r = 0; r < 12; ++r) {
            a[r] = dot(a[r], w, x);
            __asm__ volatile("" : "+v"(a[r]), "+v"(x));
        }
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &to);
    return (to.tv_sec - from.tv_sec) + 1e-9 * (to.tv_nsec - from.tv_nsec);
}
"""


def peak() -> float:
    """Measure how many multiplications of bytes per second one thread computes in registers."""
    count = 12 * 10**6
    with tempfile.TemporaryDirectory() as folder:
        source, compiled = Path(folder, "peak.c"), Path(folder, "peak.so")
        source.write_text(PEAK)
        options = ["-x", "c", "-O3", "-march=native", "-shared", "-fPIC"]
        subprocess.run([find_compiler(), *options, str(source), "-o", str(compiled)], check=True)
        library = ctypes.CDLL(str(compiled))
    function = library.seconds_of_dots
    function.restype, function.argtypes = ctypes.c_double, [ctypes.c_long]
    return int(library.products()) * count / min(function(count) for _ in range(50))


@click.command()
@click.option("--rows", default="1,2,4,8,16,64,512", show_default=True, help="Rows to multiply, with commas.")
@click.option("--bits", default="4,8", show_default=True, help="Bits of a weight's numbers, with commas.")
@click.option("--block", default=32, show_default=True, help="Numbers that share a scale.")
@click.option(
    "--shapes", default="1024x2816,1024x1024,1024x256", show_default=True, help="Depth x columns, with commas."
)
@click.option("--threads", default=2, show_default=True, help="Threads of a session.")
@click.option("--rounds", default=5, show_default=True, help="Rounds that count.")
def main(rows: str, bits: str, block: int, shapes: str, threads: int, rounds: int) -> None:
    """Compare the library's operator with onnxruntime's."""
    library, _ = build_ort_library()
    if not has_dots(library):
        raise SystemExit(
            "This processor has neither AVX-512 VNNI nor AVX2, without which sessions keep onnxruntime's operator."
        )
    found: list[dict[str, Any]] = []
    most = threads * peak()
    for shape, width in itertools.product(shapes.split(","), map(int, bits.split(","))):
        depth, columns = map(int, shape.split("x"))
        with tempfile.TemporaryDirectory() as scratch:
            path = write_graph(Path(scratch), width, block, depth, columns)
            both, weight = sessions(path, use_quantized_matmul, threads), dequantized(path, width)
            for count in map(int, rows.split(",")):
                x = rounded_rows(count, depth, block)
                errors = check(both, x, x @ weight)
                seconds = race(both, x, rounds, threads)
                ratio = paired_ratio(seconds[LIBRARY], seconds[STANDARD])
                share = len(both[LIBRARY].get_outputs()[:-1]) * count * depth * columns / min(seconds[LIBRARY]) / most
                medians = {by: 1e3 * statistics.median(times) for by, times in seconds.items()}
                found.append(
                    {
                        "weight": [depth, columns],
                        "bits": width,
                        "rows": count,
                        "median_milliseconds": medians,
                        "library_over_onnxruntime": ratio,
                        "share_of_peak": share,
                        "relative_error": errors,
                    }
                )
                print(
                    f"{shape}, {width} bits, {count:3d} rows: library {medians[LIBRARY]:7.2f} ms, onnxruntime "
                    f"{medians[STANDARD]:7.2f} ms, ratio {ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})"
                    f", {share:.2f} of the peak",
                    flush=True,
                )
    write_result("quantized_matmul_operator", {"block": block, "threads": threads, "peak": most, "measured": found})


if __name__ == "__main__":
    main()
