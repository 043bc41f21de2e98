"""Rows by weights in blocks that come from memory: the library's product beside onnxruntime's MatMulNBits.

Weights of one shape, more of them than a cache holds, each multiplied once a run by the same rows, whose numbers are
rounded to 8 bits.
The two run in turn, round by round.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from common import write_result

from lucid_deploy.bench.report import paired_ratio
from lucid_deploy.export.operators import OPSET
from lucid_deploy.ort import import_onnxruntime
from lucid_deploy.plugins.hosts.onnxruntime.build import build_ort_library, has_dots
from lucid_deploy.runtimes.onnxruntime.quantized_matmul import use_quantized_matmul

ort = import_onnxruntime()
ELEMENTS = 48 * 1024 * 2816  # of all weights of a graph
LIBRARY, STANDARD = "library", "onnxruntime"
LIMIT = 1e-3  # of the difference: an input between two whole numbers may be rounded to either


def write_graph(folder: Path, bits: int, block: int, depth: int, columns: int) -> Path:
    """Write a graph of products of ``x`` by all weights, of each of which it gives the largest number."""
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


def session(path: Path, by: str, library: Path, threads: int) -> ort.InferenceSession:
    """Return onnxruntime's session of a graph, multiplied by LIBRARY or STANDARD."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # as our sessions
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    model = onnx.load(path, load_external_data=False)
    if by == LIBRARY:
        assert use_quantized_matmul(model)
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def race(sessions: dict[str, ort.InferenceSession], rows: int, depth: int, rounds: int) -> dict[str, list[float]]:
    """Return seconds of a run, by what multiplies and round."""
    x = np.random.default_rng(1).standard_normal((rows, depth)).astype(np.float32)
    products = {name: each.run(["product_0"], {"x": x})[0] for name, each in sessions.items()}
    error = np.linalg.norm(products[LIBRARY] - products[STANDARD]) / np.linalg.norm(products[STANDARD])
    if error > LIMIT:
        raise SystemExit(f"{rows} rows: the products differ by {error:.1e}, nothing is timed.")
    largest = [output.name for output in sessions[LIBRARY].get_outputs() if output.name != "product_0"]
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(rounds + 1):  # the first warms up
        for name, each in sorted(sessions.items(), reverse=bool(turn % 2)):
            started = time.perf_counter()
            each.run(largest, {"x": x})
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


@click.command()
@click.option("--rows", default="1,2,4,8,16,64,512", show_default=True, help="Rows of a product, with commas.")
@click.option("--bits", default="4,8", show_default=True, help="Of a weight's numbers, with commas.")
@click.option("--block", default=32, show_default=True, help="Numbers that share a scale.")
@click.option(
    "--shapes", default="1024x2816,1024x1024,1024x256", show_default=True, help="Depth x columns, with commas."
)
@click.option("--threads", default=2, show_default=True, help="Threads of a session.")
@click.option("--rounds", default=5, show_default=True, help="Rounds that count.")
def main(rows: str, bits: str, block: int, shapes: str, threads: int, rounds: int) -> None:
    """Compare the library's product with onnxruntime's."""
    library, _ = build_ort_library()
    if not has_dots(library):
        raise SystemExit(
            "This processor has no AVX-512 VNNI, without which sessions do not take the library's product."
        )
    found: list[dict[str, Any]] = []
    for shape, width in itertools.product(shapes.split(","), map(int, bits.split(","))):
        depth, columns = map(int, shape.split("x"))
        with tempfile.TemporaryDirectory() as scratch:
            path = write_graph(Path(scratch), width, block, depth, columns)
            sessions = {by: session(path, by, library, threads) for by in (STANDARD, LIBRARY)}
            for count in map(int, rows.split(",")):
                seconds = race(sessions, count, depth, rounds)
                ratio = paired_ratio(seconds[LIBRARY], seconds[STANDARD])
                medians = {by: 1e3 * statistics.median(times) for by, times in seconds.items()}
                found.append(
                    {
                        "weight": [depth, columns],
                        "bits": width,
                        "rows": count,
                        "median_milliseconds": medians,
                        "library_over_onnxruntime": ratio,
                    }
                )
                print(
                    f"{shape}, {width} bits, {count:3d} rows: library {medians[LIBRARY]:7.2f} ms, onnxruntime "
                    f"{medians[STANDARD]:7.2f} ms, ratio {ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})",
                    flush=True,
                )
    write_result("quantized_matmul_operator", {"block": block, "threads": threads, "measured": found})


if __name__ == "__main__":
    main()
