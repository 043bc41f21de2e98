"""Matrix multiplication of a few rows by weights from memory: the library's beside onnxruntime's MatMul.

The weights have one shape and are more than a cache holds (276 MB in float32); a run multiplies each once by the same
rows. onnxruntime packs the weights, as it does by default, and converts those in float16 to float32 when it loads them.
Transposed weights, as of heads that are tied to an embedding, are measured too: Gemm multiplies by them. The two
implementations run in turn, round by round.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from common import write_result
from library_products import LIBRARY, STANDARD, check, race, sessions

from lucid_deploy.bench.report import paired_ratio
from lucid_deploy.export.operators import OPSET
from lucid_deploy.plugins.hosts.onnxruntime.build import build_ort_library, kernels_name
from lucid_deploy.runtimes.passes.library_kernels import use_weight_matmul

ELEMENTS = 24 * 1024 * 2816  # of all weights of a graph
MATMUL, GEMM = "MatMul", "Gemm"


def write_graph(folder: Path, dtype: str, operator: str, depth: int, columns: int) -> Path:
    """Write a graph that multiplies ``x`` by all weights; outputs: each product's largest value, and ``product_0``."""
    count = ELEMENTS // (depth * columns)
    attributes = {"transB": 1} if operator == GEMM else {}
    make, element = onnx.helper, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    rng, nodes, weights = np.random.default_rng(0), [], []
    for i in range(count):
        weight = rng.standard_normal((depth, columns), dtype=np.float32) / depth**0.5
        stored = np.ascontiguousarray(weight.T if operator == GEMM else weight).astype(dtype)
        weights.append(onnx.numpy_helper.from_array(stored, f"weight_{i}"))
        nodes.append(make.make_node(operator, ["x", f"weight_{i}"], [f"product_{i}"], **attributes))
        nodes.append(make.make_node("ReduceMax", [f"product_{i}"], [f"most_{i}"], keepdims=0))
    outputs = [make.make_tensor_value_info(f"most_{i}", element, []) for i in range(count)]
    outputs.append(make.make_tensor_value_info("product_0", element, ["rows", columns]))
    graph = make.make_graph(
        nodes, "products", [make.make_tensor_value_info("x", element, ["rows", depth])], outputs, weights
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", OPSET)], ir_version=10)
    path = folder / f"{operator}-{dtype}.onnx"
    onnx.save(model, path, save_as_external_data=True, location=f"{operator}-{dtype}.bin")
    return path


def measure(
    path: Path, dtype: str, operator: str, threads: int, counts: list[int], rounds: int
) -> list[dict[str, Any]]:
    """Check the library's products and onnxruntime's against float64, then time them."""
    both = sessions(path, use_weight_matmul, threads)
    weight = onnx.numpy_helper.to_array(onnx.load(path).graph.initializer[0]).astype(np.float64)
    weight = weight.T if operator == GEMM else weight
    measured = []
    for rows in counts:
        x = np.random.default_rng(rows).standard_normal((rows, len(weight))).astype(dtype)
        errors = check(both, x, x.astype(np.float64) @ weight)
        seconds = race(both, x, rounds, threads)
        measured.append(
            {
                "operator": operator,
                "weight": list(weight.shape),
                "rows": rows,
                "dtype": dtype,
                "threads": threads,
                "median_milliseconds": {by: 1e3 * statistics.median(times) for by, times in seconds.items()},
                "library_over_onnxruntime": paired_ratio(seconds[LIBRARY], seconds[STANDARD]),
                "relative_error": errors,
            }
        )
    return measured


@click.command(help=__doc__)
@click.option("--rows", default="1,2,4,8,16,32,64", show_default=True, help="Rows, with commas.")
@click.option("--threads", default="1,2", show_default=True, help="Threads of onnxruntime, with commas.")
@click.option(
    "--shapes",
    default="1024x2816,1024x1024,2816x1024,1024x256",
    show_default=True,
    help="Depth and columns, with commas.",
)
@click.option("--rounds", default=15, show_default=True, help="Rounds that count.")
@click.option(
    "--write/--no-write", default=True, help="Whether to write benchmarks/results/weight_matmul_operator.json."
)
def main(rows: str, threads: str, shapes: str, rounds: int, write: bool) -> None:
    """Measure, print, and write the results."""
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        sizes = [tuple(map(int, shape.split("x"))) for shape in shapes.split(",")]
        cases = itertools.product((MATMUL, GEMM), sizes, ("float32", "float16"), map(int, threads.split(",")))
        for operator, (depth, columns), dtype, count in cases:
            path = write_graph(Path(folder), dtype, operator, depth, columns)
            for row in measure(path, dtype, operator, count, list(map(int, rows.split(","))), rounds):
                measured.append(row)
                medians, ratio = row["median_milliseconds"], row["library_over_onnxruntime"]
                print(
                    f"{operator}, {depth} x {columns}, {dtype}, {count} threads, {row['rows']:2d} rows: "
                    f"library {medians[LIBRARY]:6.2f} ms, "
                    f"onnxruntime {medians[STANDARD]:6.2f} ms, ratio {ratio['median']:.2f} "
                    f"({ratio['min']:.2f}-{ratio['max']:.2f})",
                    flush=True,
                )
    if write:
        facts = {"instructions": kernels_name(build_ort_library()[0]), "rounds": rounds}
        write_result("weight_matmul_operator", {**facts, "rows": measured})


if __name__ == "__main__":
    main()
