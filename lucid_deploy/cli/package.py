"""The command ``lucid-deploy package``: write an artifact in the layout of another server or tool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lucid_deploy.cli._command import Command
from lucid_deploy.cli._console import note, progress, show, write_results
from lucid_deploy.cli._options import artifact_argument, choice_option, json_option
from lucid_deploy.cli._sources import refuse_given

_OF_TRITON = ("name", "backend", "device", "instances", "threads")
_OF_TENSORRT = ("max_batch", "max_context", "prefill_chunk", "plugin")


@click.command("package", cls=Command)
@artifact_argument
@click.option("--target", type=click.Choice(["triton", "tensorrt"]), required=True, help="What the package is for.")
@click.option("-o", "--output", required=True, type=click.Path(), help="The model repository, or TensorRT's folder.")
@click.option("--name", help="triton: the models are NAME-prefill and NAME-decode; default: the artifact's directory.")
@choice_option(
    "--backend",
    ["onnxruntime", "tensorrt"],
    help="triton: onnxruntime for the graphs, tensorrt for the engines of lucid-deploy build --backend tensorrt.",
)
@choice_option("--device", ["cpu", "gpu"], help="triton: where the models run.")
@click.option(
    "--instances",
    type=click.IntRange(1, 2**31 - 1),  # an int32 of Triton's model configuration
    default=1,
    show_default=True,
    help="triton: copies of each model per device.",
)
@click.option("--threads", type=int, help="triton: threads of each copy on the CPU; default: as many as it has cores.")
@click.option("--max-batch", type=int, metavar="B", help="tensorrt: most rows at once; default: 4.")
@click.option("--max-context", type=int, metavar="N", help="tensorrt: most tokens of a row; default: the model's.")
@click.option("--prefill-chunk", type=int, metavar="N", help="tensorrt: most new tokens of one prefill, as in build.")
@click.option("--plugin", type=click.Path(path_type=Path), help="tensorrt: the plugin library; default: as in build.")
@click.option("--overwrite", is_flag=True, help="Replace what an earlier call made.")
@json_option("what was made")
@click.pass_context
def command(
    context: click.Context, artifact: str, target: str, output: str, json_target: str | None, **options: Any
) -> None:
    """Package an artifact for NVIDIA Triton, or for trtexec and Polygraphy.

    triton writes a model repository; tensorrt a folder with graphs, plugin, profiles, scripts and golden outputs.

    Example: lucid-deploy package ./artifact --target triton --output ./models
    """
    from lucid_deploy.artifact import check_hashes, open_artifact

    other = "tensorrt" if target == "triton" else "triton"
    refuse_given(context, _OF_TENSORRT if target == "triton" else _OF_TRITON, f"is for --target {other}")
    opened = open_artifact(artifact)
    with progress("Checking sha256") as update:  # a package has no manifest that it could be checked against later
        check_hashes(opened, update)
    made, facts = (_triton if target == "triton" else _tensorrt)(opened, output, options)
    facts = {"artifact": str(opened.directory), "target": target, **facts, "made": [*map(str, made)]}
    line = f"Packaged {opened.directory} for {target}: {', '.join(map(str, made))}"
    write_results(facts, json_target, lambda: show(line))


def _triton(artifact: Any, output: str, options: dict[str, Any]) -> tuple[list[Path], dict[str, Any]]:
    from lucid_deploy.packaging.triton import TritonOptions, package_triton

    chosen = TritonOptions(**{name: options[name] for name in (*_OF_TRITON, "overwrite")})
    return package_triton(artifact, output, chosen), {"backend": chosen.backend}


def _tensorrt(artifact: Any, output: str, options: dict[str, Any]) -> tuple[list[Path], dict[str, Any]]:
    from lucid_deploy.packaging.tensorrt import TensorRtOptions, package_tensorrt

    chosen = TensorRtOptions(**{name: options[name] for name in (*_OF_TENSORRT, "overwrite")})
    with progress("Packaging") as update:
        shown = lambda done, total, name: update(f"Compiling {name}", done, total)  # noqa: E731
        return [package_tensorrt(artifact, output, chosen, note, shown)], {}
