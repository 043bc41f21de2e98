"""``lucid-deploy plugin``."""

from __future__ import annotations

from pathlib import Path

import click


@click.group("plugin")
def command() -> None:
    """Build the TensorRT plugin library.

    Example: lucid-deploy plugin build --arch 8.6,12.0
    """


@command.command("build")
@click.option(
    "--arch", "archs", metavar="LIST", help="Compute capabilities to compile for, such as 8.6,9.0; default: all."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The library to write; default: where build looks for it."
)
@click.option("--json", "json_target", metavar="FILE", help="Write path, size and ABI as JSON to FILE; - is stdout.")
def build(archs: str | None, output: Path | None, json_target: str | None) -> None:
    """Compile the kernels and the plugin library; needs a C++ compiler, and no GPU.

    Compiled kernels are kept, so that a second time is quick.

    Example: lucid-deploy plugin build --arch 8.6,12.0
    """
    from lucid_deploy.cli._console import console_out, human_size, progress, write_json
    from lucid_deploy.engines.plugin_library import default_library
    from lucid_deploy.plugins.aot import ARCHITECTURES, compile_kernels, default_cache
    from lucid_deploy.plugins.build import PLUGIN_ABI, build_plugin, find_compiler, find_cuda_headers
    from lucid_deploy.plugins.build import find_tensorrt_headers as find_headers

    wanted = _architectures(archs) or ARCHITECTURES
    find_compiler(), find_headers(), find_cuda_headers()  # what is missing shows before the long compilation
    with progress("Compiling kernels") as update:
        kernels = compile_kernels(
            wanted, cache=default_cache(), progress=lambda done, total, name: update(f"Compiling {name}", done, total)
        )
    library = build_plugin(output or default_library(), kernels)
    facts = {
        "library": str(library),
        "size": library.stat().st_size,
        "abi": PLUGIN_ABI,
        "architectures": list(wanted),
        "kernels": len(kernels),
    }
    if json_target is not None:
        write_json(facts, json_target)
    if json_target != "-":
        console_out.print(
            f"Built {library}: {len(kernels)} kernels, {human_size(library.stat().st_size)}, ABI {PLUGIN_ABI}",
            soft_wrap=True,
            markup=False,
        )


def _architectures(listed: str | None) -> tuple[int, ...]:
    from lucid_deploy.errors import LucidError

    items = [item.strip() for item in (listed or "").split(",") if item.strip()]
    digits = [item.replace(".", "") for item in items]
    if wrong := [item for item, number in zip(items, digits, strict=True) if not number.isdecimal()]:
        raise LucidError(f"--arch takes compute capabilities such as 8.6,9.0, not {', '.join(wrong)}.")
    return tuple(dict.fromkeys(int(number) for number in digits))
