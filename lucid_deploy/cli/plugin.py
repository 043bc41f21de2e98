"""The command ``lucid-deploy plugin``: build the libraries that compute our operators natively."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import click

from lucid_deploy.cli._command import Command
from lucid_deploy.cli._console import human_size, progress, show, write_results
from lucid_deploy.cli._options import NumberList, TypeName, choice_option, json_option
from lucid_deploy.errors import LucidError


@click.group("plugin")
def command() -> None:
    """Build the libraries that compute our operators natively: TensorRT's plugin, and kernels for onnxruntime's CPU.

    Example: lucid-deploy plugin build --target onnxruntime
    """


@command.command("build", cls=Command)
@choice_option(
    "--target",
    ["tensorrt", "onnxruntime", "all"],
    help="TensorRT's plugin, which needs the extra kernels; kernels for onnxruntime's CPU; or both.",
)
@click.option("--arch", "archs", metavar="LIST", help="For tensorrt: compute capabilities, as 8.6,9.0; default: all.")
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    type=TypeName(["float32", "float16", "bfloat16"]),
    help="For tensorrt: compile for this type only; may be repeated; default: all.",
)
@click.option(
    "--head-dim",
    "head_dims",
    type=NumberList("64,128"),
    default=(),
    metavar="LIST",
    help="For tensorrt: compile for these head widths only; inspect shows an artifact's; default: 16 to 256.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The library to write; default: where commands look for it."
)
@json_option("path, size and ABI")
def build(
    target: str,
    archs: str | None,
    dtypes: tuple[str, ...],
    head_dims: tuple[int, ...],
    output: Path | None,
    json_target: str | None,
) -> None:
    """Compile a library; needs a C++ compiler, and no GPU.

    Compiled kernels are kept, so building again is quick. The TensorRT plugin takes minutes the first time, the
    library for onnxruntime under a minute.

    Example: lucid-deploy plugin build --target tensorrt --arch 8.6,12.0
    """
    from lucid_deploy.plugins.hosts.compiler import find_compiler

    architectures = _architectures(archs)
    if (architectures or dtypes or head_dims) and target == "onnxruntime":
        raise LucidError(
            "--arch, --dtype and --head-dim are for --target tensorrt; the library for onnxruntime fits every "
            "processor, type and width."
        )
    if output is not None and target == "all":
        raise LucidError("--output names one library; build one --target at a time with it.")
    if output is not None and output.exists() and not output.is_file():
        raise LucidError(f"--output {output} cannot be written: it is no regular file. Name a file.")
    find_compiler()
    built: dict[str, tuple[str, dict[str, Any]]] = {}
    if target != "tensorrt":
        built["onnxruntime"] = _build_onnxruntime(output)
    if target != "onnxruntime":
        built["tensorrt"] = _build_tensorrt(output, architectures, dtypes, head_dims)
    facts = built[target if target != "all" else "tensorrt"][1]
    if target == "all":
        facts = {**facts, "onnxruntime": built["onnxruntime"][1]}
    lines = "\n".join(line for line, _ in built.values())
    write_results(facts, json_target, lambda: show(lines))


def _build_tensorrt(
    output: Path | None, architectures: tuple[int, ...], dtypes: tuple[str, ...], head_dims: tuple[int, ...]
) -> tuple[str, dict[str, Any]]:
    """Build the plugin; return what to print, and the facts for JSON."""
    from lucid_deploy.plugins.hosts.tensorrt.build import PLUGIN_ABI
    from lucid_deploy.plugins.hosts.triton.aot import ARCHITECTURES
    from lucid_deploy.runtimes.tensorrt.plugin_library import build_library, user_library

    wanted, library = architectures or ARCHITECTURES, output or user_library()
    with progress("Compiling kernels") as update:

        def listener(done: int, total: int, name: str) -> None:
            update(f"Compiling {name}", done, total)

        kernels = build_library(library, wanted, dtypes, listener, head_dims)
    size, packed = library.stat().st_size, sum(len(zlib.compress(kernel.image)) for kernel in kernels)
    line = (
        f"Built {library}: {len(kernels)} kernels, {human_size(size)} ({human_size(packed)} of kernels in a wheel), "
        f"ABI {PLUGIN_ABI}"
    )
    return line, {
        "library": str(library),
        "size": size,
        "abi": PLUGIN_ABI,
        "architectures": list(wanted),
        "kernels": len(kernels),
        "kernels_size": sum(len(kernel.image) for kernel in kernels),
        "kernels_size_in_a_wheel": packed,
    }


def _build_onnxruntime(output: Path | None) -> tuple[str, dict[str, Any]]:
    """Build the library of kernels for the CPU; return what to print, and the facts for JSON."""
    from lucid_deploy.plugins.hosts.onnxruntime.build import ORT_ABI, build_ort_library, kernels_name

    with progress("Compiling the library for onnxruntime"):
        library, compiled = build_ort_library(output)
    size, instructions = library.stat().st_size, kernels_name(library)
    verb = "Built" if compiled else "Kept"
    line = f"{verb} {library}: {human_size(size)}, ABI {ORT_ABI}, {instructions} here"
    facts = {"library": str(library), "size": size, "abi": ORT_ABI, "instructions": instructions}
    return line, {**facts, "compiled": compiled}


def _architectures(listed: str | None) -> tuple[int, ...]:
    """Return compute capabilities as numbers: 86 for 8.6; none where the option was not given."""
    if listed is None:
        return ()  # before PyTorch is imported, which the library for onnxruntime does not need
    from lucid_deploy.plugins.hosts.triton.aot import ARCHITECTURES

    known = {f"{arch / 10:.1f}": arch for arch in ARCHITECTURES}
    choices = ", ".join(known)
    known |= {str(arch): arch for arch in ARCHITECTURES}
    items = [item.strip() for item in listed.split(",") if item.strip()]
    if not items or not set(items) <= known.keys():
        raise LucidError(f"Kernels cannot be compiled for --arch {listed!r}; choose from {choices}.")
    return tuple(dict.fromkeys(known[item] for item in items))
