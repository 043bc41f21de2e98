"""The versions of runtimes that tests run, and the table of docs/runtimes.md: what runs exported graphs."""

from __future__ import annotations

OLDEST, BETWEEN, NEWEST = "1.23.1", "1.25.0", "1.32.0"  # of onnxruntime
STATIC_FROM = "1.25.0"  # the first onnxruntime with TensorScatter
OPENVINO = ("2026.4.0", "2026.4.1")
TRACT, TINYGRAD = "0.23.9", "0.14.0"
JAVASCRIPT = ("onnxruntime-node@1.30.0", "onnxruntime-web@1.30.0")

FORMS = ("functions", "inline", "static", "static, opset 23", "windows, rings", "hybrids", "largest error")
# By runtime: a cell for each form. Growing caches where nothing else is said.
TABLE: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("runs", "runs", f"from {STATIC_FROM}", "runs", "runs", "runs", "1e-6"),
    "onnxruntime-node": ("runs", "runs", "not tried", "not tried", "runs", "runs", "3e-7"),
    "onnxruntime-web, WASM": ("runs", "runs", "not tried", "not tried", "runs", "runs", "3.2e-7"),
    "onnxruntime-web, WebGPU": ("runs", "runs", *("not tried",) * 4, "7e-6"),
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
