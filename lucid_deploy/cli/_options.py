"""Options that several commands share: what runs the model, and where."""

from __future__ import annotations

import click

runtime_option = click.option(
    "--runtime",
    type=click.Choice(["auto", "torch", "onnxruntime", "tensorrt"]),
    default="auto",
    show_default=True,
    help="What runs the model; auto is onnxruntime.",
)
device_option = click.option(
    "--device", default="cpu", show_default=True, help="Where it runs: cpu, or cuda with torch or tensorrt."
)
provider_option = click.option(
    "--provider",
    type=click.Choice(["cpu", "cuda", "tensorrt", "nv-tensorrt-rtx"]),
    default="cpu",
    show_default=True,
    help="With onnxruntime: the execution provider; none is ever replaced by the CPU.",
)
kernels_option = click.option(
    "--kernels",
    type=click.Choice(["auto", "functions", "library"]),
    default="auto",
    show_default=True,
    help="With onnxruntime on the CPU: the library that plugin build --target onnxruntime makes, or the graph's "
    "functions; auto takes the library if there is one.",
)
threads_option = click.option(
    "--threads", type=int, help="Threads within an operator; the runtime chooses if not given."
)
