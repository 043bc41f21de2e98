"""What several commands share: the artifact, what runs it and where, and the forms of options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

RUNTIMES = ("auto", "torch", "onnxruntime", "tensorrt")

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def choice_option(name: str, choices: Sequence[str], *, help: str) -> Decorator:
    """Return an option that is one of several words; the first one is the default."""
    return click.option(name, type=click.Choice(choices), default=choices[0], show_default=True, help=help)


def json_option(what: str, note: str = "") -> Decorator:
    """Return ``--json FILE``, the parameter ``json_target``.

    Args:
        what: What is written, as the help says it.
        note: What the help adds about stdout.
    """
    text = f"Write {what} as JSON to FILE; - is stdout{note}."
    return click.option("--json", "json_target", metavar="FILE", help=text)


artifact_argument = click.argument("artifact", type=click.Path())
runtime_option = choice_option("--runtime", RUNTIMES, help="What runs the model; auto is onnxruntime.")
device_option = click.option(
    "--device", default="cpu", show_default=True, help="Where it runs: cpu, or cuda with torch or tensorrt."
)
provider_option = choice_option(
    "--provider",
    ["cpu", "cuda", "tensorrt", "nv-tensorrt-rtx"],
    help="With onnxruntime: the execution provider; none is ever replaced by the CPU.",
)
kernels_option = choice_option(
    "--kernels",
    ["auto", "functions", "library"],
    help="With onnxruntime on the CPU: the library that plugin build --target onnxruntime makes, or the graph's "
    "functions; auto takes the library if there is one.",
)
threads_option = click.option(
    "--threads", type=int, help="Threads within an operator; the runtime chooses if not given."
)
extrapolation_option = click.option(
    "--allow-extrapolation", is_flag=True, help="Permit contexts beyond max_position_embeddings."
)
