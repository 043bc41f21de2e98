"""The delta rule as a single-operator graph: our CPU kernel, the function body, and onnxruntime's own LinearAttention.

All is float32, with 8 heads of width 128 (as in Qwen3-Next) or 16 of width 64, for keys and values alike; keys are
correlated 0.9, β is 0 to 1, the decay is slow or absent. The graph of one token is measured too. All are timed in turn,
round by round, in processor time, which other processes disturb less; on one thread, since waiting threads use time.
"""

from __future__ import annotations

import itertools
import statistics
import time

import click
import numpy as np
import onnx
import torch
from common import write_result

from lucid_deploy.bench.report import paired_ratio
from lucid_deploy.export.functions import function_proto
from lucid_deploy.export.operators import OPSET
from lucid_deploy.ort import import_onnxruntime
from lucid_deploy.plugins.delta_rule.torch_operator import delta_rule
from lucid_deploy.plugins.hosts.onnxruntime.build import build_ort_library, kernels_name
from lucid_deploy.plugins.table import DELTA_RULE, DOMAIN, SCALE, VERSION

ort = import_onnxruntime()
CORRELATION = 0.9
KERNEL, BODY, OWN = "CPU kernel", "function body", "LinearAttention"
PROVIDERS = ["CPUExecutionProvider"]


def own_operator(heads: int, width: int) -> onnx.ModelProto:
    """Return a graph of onnxruntime's LinearAttention alone; query, key, value are (batch, tokens, heads · width)."""
    make = onnx.helper
    ranks = {"query": 3, "key": 3, "value": 3, "state": 4, "log_decay": 3, "beta": 3}
    settings = {"q_num_heads": heads, "kv_num_heads": heads, "update_rule": "gated_delta", "scale": width**-0.5}
    outputs = ["output", "new_state"]
    node = make.make_node("LinearAttention", [*ranks], outputs, domain="com.microsoft", **settings)
    kind = onnx.TensorProto.FLOAT
    given = [make.make_tensor_value_info(name, kind, [None] * rank) for name, rank in ranks.items()]
    found = [make.make_tensor_value_info(name, kind, None) for name in outputs]
    opsets = [make.make_opsetid("", OPSET), make.make_opsetid("com.microsoft", 1)]
    return make.make_model(make.make_graph([node], "own", given, found), opset_imports=opsets, ir_version=10)


def operator_session(threads: int, one_token: bool, by: str, heads: int, width: int) -> ort.InferenceSession:
    """Return an onnxruntime session of one DeltaRule node, computed by KERNEL or BODY, or of LinearAttention (OWN)."""
    make, element = onnx.helper, onnx.TensorProto.FLOAT
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    if by == OWN:
        return ort.InferenceSession(own_operator(heads, width).SerializeToString(), options, providers=PROVIDERS)
    axes = {"batch": "b", "heads": heads, "sequence": 1 if one_token else "n"}
    axes |= {"key_width": width, "value_width": width}
    infos = [
        [
            make.make_tensor_value_info(each.name, element, [axes[a] for a in each.shape.strip("[]").split(", ")])
            for each in of
        ]
        for of in (DELTA_RULE.inputs, DELTA_RULE.outputs)
    ]
    names = DELTA_RULE.input_names, DELTA_RULE.output_names
    node = make.make_node(DELTA_RULE.name, *names, domain=DOMAIN, **{SCALE.name: width**-0.5})
    model = make.make_model(
        make.make_graph([node], "operator", *infos),
        functions=[function_proto(DELTA_RULE.name, one_token=one_token)],
        opset_imports=[make.make_opsetid("", OPSET), make.make_opsetid(DOMAIN, VERSION)],
        ir_version=10,
    )
    if by == KERNEL:
        options.register_custom_ops_library(str(build_ort_library()[0]))
    return ort.InferenceSession(model.SerializeToString(), options, providers=PROVIDERS)


def inputs(length: int, heads: int, width: int, gated: bool) -> tuple[torch.Tensor, ...]:
    """Return query, key, value, log α, β and a state."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(1, heads, *shape, generator=generator)

    own = CORRELATION**0.5 * torch.randn(width, generator=generator) + (1 - CORRELATION) ** 0.5 * normal(length, width)
    key = torch.nn.functional.normalize(own, dim=-1)
    query = torch.nn.functional.normalize(key + 0.05 * normal(length, width), dim=-1)
    gates = torch.rand(2, 1, heads, length, generator=generator)
    return query, key, normal(length, width), -0.01 * gated * gates[0], gates[1], normal(width, width)


def side_by_side(x: np.ndarray) -> np.ndarray:
    """Turn (batch, heads, tokens, width) to (batch, tokens, heads · width); the width may be missing in both."""
    return np.ascontiguousarray(np.moveaxis(x, 1, 2)).reshape(len(x), x.shape[2], -1)


def measure(length: int, heads: int, width: int, gated: bool, rounds: int, threads: int) -> dict[str, object]:
    """Check the kernel, the body and LinearAttention against float64, then time them."""
    sessions = {by: operator_session(threads, length == 1, by, heads, width) for by in (KERNEL, BODY, OWN)}
    given = inputs(length, heads, width, gated)
    feed = {name: np.ascontiguousarray(x.numpy()) for name, x in zip(DELTA_RULE.input_names, given, strict=True)}
    exact = delta_rule(*(x.double() for x in given), width**-0.5)[0]  # type: ignore[call-arg, arg-type]
    packed = {name: x if name == "state" else side_by_side(x) for name, x in feed.items()}
    feeds = {KERNEL: feed, BODY: feed, OWN: packed}
    errors = {}
    for name, session in sessions.items():
        found = torch.from_numpy(session.run(None, feeds[name])[0]).double()
        if name == OWN:
            found = found.unflatten(2, (heads, width)).transpose(1, 2)
        errors[name] = float((found - exact).norm() / exact.norm())
    if max(errors.values()) > 1e-5:
        raise SystemExit(f"{length} tokens: wrong numbers, nothing is timed: {errors}")
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, session in sessions.items():
            time.sleep(0.05)  # threads of the session before spin a while after their work
            started = time.process_time()
            session.run(None, feeds[name])
            seconds[name].append(time.process_time() - started)
    return {
        "length": length,
        "heads": heads,
        "width": width,
        "gated": gated,
        "milliseconds": {name: [round(1e3 * s, 3) for s in times] for name, times in seconds.items()},
        "median_milliseconds": {name: 1e3 * statistics.median(times) for name, times in seconds.items()},
        "body_over_linear_attention": paired_ratio(seconds[BODY], seconds[OWN]),
        "linear_attention_over_kernel": paired_ratio(seconds[OWN], seconds[KERNEL]),
        "relative_error": errors,
    }


@click.command()
@click.option("--lengths", default="1,64,2048,8192", show_default=True, help="Tokens, with commas.")
@click.option("--shapes", default="8x128,16x64", show_default=True, help="Heads and their width, with commas.")
@click.option("--rounds", default=9, show_default=True, help="Rounds that count.")
@click.option("--threads", default=1, show_default=True, help="Threads of onnxruntime.")
def main(lengths: str, shapes: str, rounds: int, threads: int) -> None:
    """Measure the kernel, the body and LinearAttention."""
    rows = []
    cases = itertools.product(map(int, lengths.split(",")), shapes.split(","), (True, False))
    for length, shape, gated in cases:
        heads, width = map(int, shape.split("x"))
        row = measure(length, heads, width, gated, rounds, threads)
        rows.append(row)
        print(
            f"{length:6d} tokens, {heads:2d} heads of {width:3d}, {'gated' if gated else 'plain'}",
            {name: round(ms, 2) for name, ms in row["median_milliseconds"].items()},  # type: ignore[attr-defined]
            f"LinearAttention over kernel {row['linear_attention_over_kernel']['median']:.2f}",  # type: ignore[index]
            row["relative_error"],
            flush=True,
        )
    instructions = kernels_name(build_ort_library()[0])
    write_result("delta_rule_operator", {"threads": threads, "instructions": instructions, "rows": rows})


if __name__ == "__main__":
    main()
