"""What runs exported graphs, and what does not: the versions that tests run, and the table of docs/runtimes.md."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

OLDEST, BETWEEN, NEWEST = "1.23.1", "1.25.0", "1.32.0"  # of onnxruntime
STATIC_FROM = "1.25.0"  # the first onnxruntime with TensorScatter
OPENVINO = ("2026.4.0", "2026.4.1")
TRACT, TINYGRAD = "0.23.9", "0.14.0"
JAVASCRIPT = ("onnxruntime-node@1.30.0", "onnxruntime-web@1.30.0")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        runtime: Its name.
        versions: That were run.
        runs: What it runs, with the largest relative error of a step's logits in float32.
        stops: What stops the rest; empty: nothing that was tried.
        tested: By what, in this repository; empty: tried once, by hand.
    """

    runtime: str
    versions: str
    runs: str
    stops: str
    tested: str


COMPAT = "`make test-compat`"
ROWS = (
    Row(
        "onnxruntime",
        f"{OLDEST}, {BETWEEN}, {NEWEST}, each with no, basic, extended and all optimizations",
        f"functions and inline, growing, and static of `--opset 23`; static of opset 24 from {STATIC_FROM}; below 1e-6",
        "1.23.0 pairs grouped heads wrongly, without an error. Below 1.25 there is no `TensorScatter`. "
        "No bfloat16 on the CPU",
        COMPAT,
    ),
    Row(
        "onnxruntime-node",
        JAVASCRIPT[0].split("@")[1],
        "functions and inline, growing; 3e-7",
        "",
        COMPAT,
    ),
    Row(
        "onnxruntime-web, WASM",
        JAVASCRIPT[1].split("@")[1],
        "functions and inline, growing; 3.2e-7",
        "",
        f"{COMPAT}, in Node and, by the page of `examples/browser`, in Chromium",
    ),
    Row(
        "OpenVINO",
        ", ".join(OPENVINO),
        "inline, growing, and static of `--opset 23`, with `SNIPPETS_MODE=DISABLE` ([why](#openvino)); 2.9e-7",
        "Functions. Static caches of opset 24: no `TensorScatter`. 2026.3 gives logits without rows, 2026.2 has no "
        "`RMSNormalization`, older ones refuse `Pad` with axes",
        f"{COMPAT}; `--runtime openvino` in `make test`",
    ),
    Row(
        "ONNX ReferenceEvaluator",
        "1.23",
        "functions and inline, growing; below 1e-5",
        "Before 1.23 its `Gather` fails where indices are not contiguous",
        "`make test`",
    ),
    Row(
        "TensorRT-RTX",
        "1.7",
        "functions: engines of `lucid-deploy build` are built, not run, without a GPU",
        "Its parser without our graph passes: decode builds without the plugin, since the function's body wins; "
        "prefill fails. Inlined graphs have nothing for the plugin",
        "`make test`, building",
    ),
    Row(
        "tract",
        TRACT,
        "inline: decode; 2.6e-7",
        "Prefill: it divides by no symbolic size, and has no `Loop`. Functions",
        COMPAT,
    ),
    Row(
        "tinygrad",
        TINYGRAD,
        "inline: decode, its runner made anew for each token since it keeps the first one's sizes; 1.7e-7",
        "Prefill: it has no `Loop`. Functions: it knows no domain but its own",
        COMPAT,
    ),
)


FORMS = ("functions", "inline", "static", "static, opset 23", "windows, rings", "hybrids", "largest error")
# By runtime: a cell for each form. Growing caches where nothing else is said; errors are those of the list below it.
TABLE: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("runs", "runs", f"from {STATIC_FROM}", "runs", "runs", "runs", "1e-6"),
    "onnxruntime-node": ("runs", "runs", "not tried", "not tried", "runs", "runs", "3e-7"),
    "onnxruntime-web, WASM": ("runs", "runs", "not tried", "not tried", "runs", "runs", "3.2e-7"),
    "OpenVINO": ("no", "runs", "no", "runs", "runs", "runs", "2.9e-7"),
    "ONNX ReferenceEvaluator": ("runs", "runs", "not tried", "not tried", "runs", "runs", "1e-5"),
    "TensorRT-RTX": ("built", "no", "built", "no", "no", "built", "not run"),
    "tract": ("no", "decode", "not tried", "not tried", "not tried", "not tried", "2.6e-7"),
    "tinygrad": ("no", "decode", "not tried", "not tried", "not tried", "not tried", "1.7e-7"),
}


def tabled() -> str:
    """Return the table in Markdown."""
    lines = [f"| runtime | {' | '.join(FORMS)} |", "|---" * (len(FORMS) + 1) + "|"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in TABLE.items())])


def listed(rows: tuple[Row, ...]) -> str:
    """Return the list in Markdown, wrapped as the pages are."""
    entries = []
    for row in rows:
        name = f"**{row.runtime}**" + (f", {row.versions}" if row.versions else "")
        tested = row.tested or "tried by hand, on an earlier form of the graphs"
        stops = row.stops or "nothing that was tried"
        text = f"{name}. Runs: {row.runs or 'nothing'}. What stops the rest: {stops}. Tested by: {tested}."
        entries.append(
            textwrap.fill(
                text, 120, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
            )
        )
    return "\n".join(entries)
