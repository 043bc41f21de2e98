"""Precondition as a single-operator graph, by its function body and by the library, against PyTorch's attention.

The dense solve in PyTorch is measured beside them.

There are 4 key/value heads of width 64 in float32, two threads, and keys correlated 0.9. All are timed in turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import onnx
import torch
import torch.nn.functional as F
from common import write_result

from lucid_deploy.bench.report import paired_ratio
from lucid_deploy.export.functions import function_proto
from lucid_deploy.export.operators import OPSET
from lucid_deploy.ort import import_onnxruntime
from lucid_deploy.plugins.hosts.onnxruntime.build import check_ort_library, default_ort_library, kernels_name
from lucid_deploy.plugins.precondition.torch_operator import precondition
from lucid_deploy.plugins.table import DOMAIN, PRECONDITION, VERSION

ort = import_onnxruntime()
HEADS, WIDTH, CORRELATION = 4, 64, 0.9


def operator_session(threads: int, library: Path | None = None) -> ort.InferenceSession:
    """Return an onnxruntime session of one Precondition node; the library runs it if given, else its function body."""
    make, element = onnx.helper, onnx.TensorProto.FLOAT
    *names, mask = PRECONDITION.input_names
    [solved] = PRECONDITION.output_names
    inputs = [make.make_tensor_value_info(name, element, ["b", HEADS, f"{name}_n", WIDTH]) for name in names]
    inputs.append(make.make_tensor_value_info(mask, onnx.TensorProto.BOOL, ["b", "t"]))
    output = make.make_tensor_value_info(solved, element, ["b", HEADS, "n", WIDTH])
    node = make.make_node(PRECONDITION.name, [*names, mask], [solved], domain=DOMAIN, epsilon=1e-5)
    model = make.make_model(
        make.make_graph([node], "operator", inputs, [output]),
        functions=[function_proto(PRECONDITION.name)],
        opset_imports=[make.make_opsetid("", OPSET), make.make_opsetid(DOMAIN, VERSION)],
        ir_version=10,
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    if library is not None:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def measure(sessions: dict[str, ort.InferenceSession], length: int, rounds: int) -> dict[str, object]:
    """Time all contenders at one length and compare errors against float64."""
    generator = torch.Generator().manual_seed(length)
    common = torch.randn(WIDTH, generator=generator)
    own = torch.randn(1, HEADS, length, WIDTH, generator=generator)
    k = CORRELATION**0.5 * common + (1 - CORRELATION) ** 0.5 * own
    v = torch.randn(1, HEADS, length, WIDTH, generator=generator)
    q = torch.randn(1, HEADS, length, WIDTH, generator=generator)
    empty = np.zeros((1, HEADS, 0, WIDTH), np.float32)
    mask = np.ones((1, length), bool)
    feed = {"K": k.numpy(), "V": v.numpy(), "K_past": empty, "Y_past": empty, "mask": mask}
    exact = precondition(k.double(), v.double())
    contenders: dict[str, Callable[[], torch.Tensor]] = {
        name: lambda session=session: torch.from_numpy(session.run(None, feed)[0]) for name, session in sessions.items()
    }
    contenders |= {
        "dense solve_triangular": lambda: precondition(k, v, implementation="reference"),
        "blocked PyTorch": lambda: precondition(k, v),
        "causal attention": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    }
    errors = {
        name: float((run().double() - exact).norm() / exact.norm())
        for name, run in contenders.items()
        if name != "causal attention"
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, run in contenders.items():
            time.sleep(0.05)  # threads of the runtime before spin a while after their work
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    counted = {name: times[1:] for name, times in seconds.items()}
    return {
        "length": length,
        "milliseconds": {name: [round(1e3 * s, 3) for s in times] for name, times in counted.items()},
        "median_milliseconds": {name: 1e3 * statistics.median(times) for name, times in counted.items()},
        "over_causal_attention": {name: paired_ratio(counted[name], counted["causal attention"]) for name in sessions},
        "dense_over_ours": {name: paired_ratio(counted["dense solve_triangular"], counted[name]) for name in sessions},
        "relative_error": errors,
    }


@click.command()
@click.option("--lengths", default="1024,2048,4096,8192", show_default=True, help="Tokens, with commas.")
@click.option("--rounds", default=7, show_default=True, help="Rounds that count.")
@click.option("--threads", default=2, show_default=True, help="Threads of both runtimes.")
def main(lengths: str, rounds: int, threads: int) -> None:
    """Measure the Precondition function."""
    torch.set_num_threads(threads)
    library = default_ort_library()
    check_ort_library(library)
    sessions = {"library": operator_session(threads, library), "onnx function": operator_session(threads)}
    rows = []
    for length in map(int, lengths.split(",")):
        row = measure(sessions, length, rounds)
        rows.append(row)
        error = row["relative_error"]
        print(
            f"{length:6d}",
            {name: round(ms, 1) for name, ms in row["median_milliseconds"].items()},
            *(
                f"{name}: over attention {row['over_causal_attention'][name]['median']:.2f}, "
                f"dense over it {row['dense_over_ours'][name]['median']:.1f}, "
                f"error over dense {error[name] / error['dense solve_triangular']:.2f};"
                for name in sessions
            ),
        )
    facts = {"threads": threads, "heads": HEADS, "width": WIDTH, "instructions": kernels_name(library)}
    write_result("precondition_operator", {**facts, "rows": rows})


if __name__ == "__main__":
    main()
