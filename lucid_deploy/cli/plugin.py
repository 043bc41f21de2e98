"""``lucid-deploy plugin``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from lucid_deploy.cli._command import Command, Group
from lucid_deploy.cli._options import TypeName, choice_option, json_option


@click.group("plugin", cls=Group)
def command() -> None:
    """Build the libraries that compute our operators natively: TensorRT's plugin, and kernels for onnxruntime's CPU.

    Example: lucid-deploy plugin build --target onnxruntime
    """


@command.command("build", cls=Command)
@choice_option(
    "--target",
    ["tensorrt", "onnxruntime", "all"],
    help="Which library: TensorRT's plugin, which needs the extra kernels; kernels for onnxruntime's CPU, which need a "
    "compiler only; or both.",
)
@click.option(
    "--arch",
    "archs",
    metavar="LIST",
    help="For tensorrt: compute capabilities to compile for, such as 8.6,9.0; default: all.",
)
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    type=TypeName(["float32", "float16", "bfloat16"]),
    help="For tensorrt: compile for artifacts of this type only, which is quicker; may be repeated; default: all.",
)
@click.option(
    "--head-dim",
    "head_dims",
    metavar="LIST",
    help="For tensorrt: compile for these head widths only, such as 64,128, which is quicker; inspect shows an "
    "artifact's; default: all, 16 to 256.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The library to write; default: where commands look for it."
)
@json_option("path, size and ABI")
def build(
    target: str,
    archs: str | None,
    dtypes: tuple[str, ...],
    head_dims: str | None,
    output: Path | None,
    json_target: str | None,
) -> None:
    """Compile a library; needs a C++ compiler, and no GPU.

    What is compiled is kept, so that a second time is quick. The TensorRT plugin takes minutes the first time, the
    library for onnxruntime half a minute.

    Example: lucid-deploy plugin build --target tensorrt --arch 8.6,12.0
    """
    from lucid_deploy.cli._console import write_json
    from lucid_deploy.errors import LucidError
    from lucid_deploy.plugins.hosts.compiler import find_compiler

    wanted = _Kernels(_architectures(archs), dtypes, _widths(head_dims))
    if wanted != _Kernels() and target == "onnxruntime":
        raise LucidError(
            "--arch, --dtype and --head-dim are for --target tensorrt; the library for onnxruntime fits every "
            "processor, type and width."
        )
    if output is not None and target == "all":
        raise LucidError("--output names one library; build one --target at a time with it.")
    if output is not None and output.exists() and not output.is_file():
        what = "a folder" if output.is_dir() else "no file but a device or a pipe"
        raise LucidError(f"--output {output} cannot be written: it is {what}. Name a file.")
    find_compiler()
    facts: dict[str, Any] = {}
    if target != "tensorrt":
        facts = _build_onnxruntime(output, quiet=json_target == "-")
    if target != "onnxruntime":
        built = _build_tensorrt(wanted, output, quiet=json_target == "-")
        facts = {**built, "onnxruntime": facts} if facts else built
    if json_target is not None:
        write_json(facts, json_target)


@dataclass(frozen=True)
class _Kernels:
    """Which kernels of TensorRT's plugin are compiled; (): all."""

    archs: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ()
    head_dims: tuple[int, ...] = ()


def _build_tensorrt(chosen: _Kernels, output: Path | None, quiet: bool) -> dict[str, Any]:
    from lucid_deploy.cli._console import console_out, human_size, progress
    from lucid_deploy.plugins.hosts.tensorrt.build import PLUGIN_ABI
    from lucid_deploy.plugins.hosts.triton.aot import ARCHITECTURES
    from lucid_deploy.plugins.hosts.triton.compiled_kernel import total_size
    from lucid_deploy.runtimes.tensorrt.plugin_library import build_library, user_library

    wanted, library = chosen.archs or ARCHITECTURES, output or user_library()
    with progress("Compiling kernels") as update:
        kernels = build_library(
            library,
            wanted,
            chosen.dtypes,
            lambda done, total, name: update(f"Compiling {name}", done, total),
            chosen.head_dims,
        )
    size, (kernels_size, packed) = library.stat().st_size, total_size(kernels)
    if not quiet:
        console_out.print(
            f"Built {library}: {len(kernels)} kernels, {human_size(size)} "
            f"({human_size(packed)} of kernels in a wheel), ABI {PLUGIN_ABI}",
            soft_wrap=True,
            markup=False,
        )
    return {
        "library": str(library),
        "size": size,
        "abi": PLUGIN_ABI,
        "architectures": list(wanted),
        "kernels": len(kernels),
        "kernels_size": kernels_size,
        "kernels_size_in_a_wheel": packed,
    }


def _build_onnxruntime(output: Path | None, quiet: bool) -> dict[str, Any]:
    from lucid_deploy.cli._console import console_out, human_size, progress
    from lucid_deploy.plugins.hosts.onnxruntime.build import ORT_ABI, build_ort_library, kernels_name

    with progress("Compiling the library for onnxruntime"):
        library, compiled = build_ort_library(output)
    size, instructions = library.stat().st_size, kernels_name(library)
    if not quiet:
        console_out.print(
            f"{'Built' if compiled else 'Kept'} {library}: {human_size(size)}, ABI {ORT_ABI}, {instructions} here",
            soft_wrap=True,
            markup=False,
        )
    return {
        "library": str(library),
        "size": size,
        "abi": ORT_ABI,
        "instructions": instructions,
        "compiled": compiled,
    }


def _architectures(listed: str | None) -> tuple[int, ...]:
    from lucid_deploy.errors import LucidError

    items = _items("--arch", listed, "compute capabilities such as 8.6,9.0")
    if not items:
        return ()  # before PyTorch is imported, which the library for onnxruntime does not need
    from lucid_deploy.plugins.hosts.triton.aot import ARCHITECTURES

    digits = [item.replace(".", "") for item in items]
    if wrong := [item for item, number in zip(items, digits, strict=True) if not number.isdecimal()]:
        raise LucidError(f"--arch takes compute capabilities such as 8.6,9.0, not {', '.join(wrong)}.")
    if unknown := [item for item, number in zip(items, digits, strict=True) if int(number) not in ARCHITECTURES]:
        known = ", ".join(f"{arch / 10:.1f}" for arch in ARCHITECTURES)
        raise LucidError(f"Kernels cannot be compiled for --arch {', '.join(unknown)}; choose from {known}.")
    return tuple(dict.fromkeys(int(number) for number in digits))


def _widths(listed: str | None) -> tuple[int, ...]:
    from lucid_deploy.errors import LucidError

    items = _items("--head-dim", listed, "head widths such as 64,128")
    if wrong := [item for item in items if not item.isdecimal()]:
        raise LucidError(f"--head-dim takes head widths such as 64,128, not {', '.join(wrong)}.")
    return tuple(dict.fromkeys(map(int, items)))


def _items(option: str, listed: str | None, what: str) -> list[str]:
    """Return the parts of a list; none where the option was not given."""
    from lucid_deploy.errors import LucidError

    items = [item.strip() for item in (listed or "").split(",") if item.strip()]
    if listed is not None and not items:
        raise LucidError(f"{option} names nothing; it takes {what}. Leave it out for all.")
    return items
