"""The delta rule as a single-operator graph: its function body against onnxruntime's own LinearAttention.

8 heads, keys and values 128 wide, float32, two threads; keys correlated 0.9, β 0 to 1, a slow decay. The graph of one
token is measured too. Both are timed in turn, round by round.
"""

from __future__ import annotations

import statistics
import time

import click
import numpy as np
import onnx
import onnxruntime as ort
import torch
from common import write_result

from lucid_deploy.bench.report import paired_ratio
from lucid_deploy.export.functions import function_proto
from lucid_deploy.export.operators import OPSET
from lucid_deploy.plugins.delta_rule import delta_rule
from lucid_deploy.plugins.table import DELTA_RULE, DOMAIN, SCALE, VERSION
from lucid_deploy.runtimes.onnxruntime.linear_attention import use_linear_attention

HEADS, WIDTH, CORRELATION = 8, 128, 0.9
BODY, OWN = "function body", "LinearAttention"


def operator_session(threads: int, one_token: bool, own: bool) -> ort.InferenceSession:
    """Return onnxruntime's session of one DeltaRule node, computed by its body or by onnxruntime's own operator."""
    make, element = onnx.helper, onnx.TensorProto.FLOAT
    axes = {"batch": "b", "heads": HEADS, "sequence": 1 if one_token else "n"}
    axes |= {"key_width": WIDTH, "value_width": WIDTH}
    infos = [
        [
            make.make_tensor_value_info(each.name, element, [axes[a] for a in each.shape.strip("[]").split(", ")])
            for each in of
        ]
        for of in (DELTA_RULE.inputs, DELTA_RULE.outputs)
    ]
    names = DELTA_RULE.input_names, DELTA_RULE.output_names
    node = make.make_node(DELTA_RULE.name, *names, domain=DOMAIN, **{SCALE.name: WIDTH**-0.5})
    model = make.make_model(
        make.make_graph([node], "operator", *infos),
        functions=[function_proto(DELTA_RULE.name, one_token=one_token)],
        opset_imports=[make.make_opsetid("", OPSET), make.make_opsetid(DOMAIN, VERSION)],
        ir_version=10,
    )
    assert not own or use_linear_attention(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def inputs(length: int) -> tuple[torch.Tensor, ...]:
    """Return query, key, value, log α, β and a state."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(1, HEADS, *shape, generator=generator)

    own = CORRELATION**0.5 * torch.randn(WIDTH, generator=generator) + (1 - CORRELATION) ** 0.5 * normal(length, WIDTH)
    key = torch.nn.functional.normalize(own, dim=-1)
    query = torch.nn.functional.normalize(key + 0.05 * normal(length, WIDTH), dim=-1)
    gates = torch.rand(2, 1, HEADS, length, generator=generator)
    return query, key, normal(length, WIDTH), -0.01 * gates[0], gates[1], normal(WIDTH, WIDTH)


def measure(sessions: dict[str, ort.InferenceSession], length: int, rounds: int) -> dict[str, object]:
    """Check both against float64, then time them."""
    given = inputs(length)
    feed = {name: np.ascontiguousarray(x.numpy()) for name, x in zip(DELTA_RULE.input_names, given, strict=True)}
    exact = delta_rule(*(x.double() for x in given), WIDTH**-0.5)[0]  # type: ignore[call-arg, arg-type]
    errors = {}
    for name, session in sessions.items():
        found = torch.from_numpy(session.run(None, feed)[0]).double()
        errors[name] = float((found - exact).norm() / exact.norm())
    if max(errors.values()) > 1e-5:
        raise SystemExit(f"{length} tokens: wrong numbers, nothing is timed: {errors}")
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, session in sessions.items():
            time.sleep(0.05)  # threads of the session before spin a while after their work
            started = time.perf_counter()
            session.run(None, feed)
            seconds[name].append(time.perf_counter() - started)
    return {
        "length": length,
        "milliseconds": {name: [round(1e3 * s, 3) for s in times] for name, times in seconds.items()},
        "median_milliseconds": {name: 1e3 * statistics.median(times) for name, times in seconds.items()},
        "body_over_linear_attention": paired_ratio(seconds[BODY], seconds[OWN]),
        "relative_error": errors,
    }


@click.command()
@click.option("--lengths", default="1,64,2048,8192", show_default=True, help="Tokens, with commas.")
@click.option("--rounds", default=9, show_default=True, help="Rounds that count.")
@click.option("--threads", default=2, show_default=True, help="Threads of onnxruntime.")
def main(lengths: str, rounds: int, threads: int) -> None:
    """Measure the two."""
    rows = []
    for length in map(int, lengths.split(",")):
        sessions = {name: operator_session(threads, length == 1, name == OWN) for name in (BODY, OWN)}
        row = measure(sessions, length, rounds)
        rows.append(row)
        print(
            f"{length:6d}",
            {name: round(ms, 2) for name, ms in row["median_milliseconds"].items()},  # type: ignore[attr-defined]
            f"body over LinearAttention {row['body_over_linear_attention']['median']:.2f}",  # type: ignore[index]
            row["relative_error"],
        )
    write_result("delta_rule_operator", {"threads": threads, "heads": HEADS, "width": WIDTH, "rows": rows})


if __name__ == "__main__":
    main()
