"""The command ``lucid-deploy build``: make TensorRT engines of an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from lucid_deploy.cli._command import Command
from lucid_deploy.cli._console import console_out, human_size, note, progress, show, write_results
from lucid_deploy.cli._options import artifact_argument, json_option
from lucid_deploy.errors import LucidError

if TYPE_CHECKING:
    from lucid_deploy.runtimes.tensorrt.build import BuildReport


@click.command("build", cls=Command)
@artifact_argument
@click.option(
    "--backend",
    type=click.Choice(["tensorrt-rtx", "tensorrt"]),
    help="Which TensorRT builds; default: TensorRT-RTX if it is installed, else TensorRT.",
)
@click.option("--max-batch", type=int, metavar="B", help="Most rows at once; default: 4.")
@click.option("--max-context", type=int, metavar="N", help="Most tokens of a row; default: the model's maximum.")
@click.option("--prefill-chunk", type=int, metavar="N", help="Most new tokens of one prefill; default: 2048.")
@click.option(
    "--compute-capability", "capabilities", metavar="LIST", help="GPUs to build for, such as 8.6,12.0; default: all."
)
@click.option(
    "--speculate", is_flag=True, help="Also build the engine that verifies drafts: one more copy of the weights."
)
@click.option(
    "--weightless", is_flag=True, help="Leave the weights out of the engines; needs a GPU on the building machine."
)
@click.option("--plugin", type=click.Path(path_type=Path), help="Plugin library; default: the wheel's or your build.")
@click.option("--overwrite", is_flag=True, help="Replace engines that exist already.")
@json_option("the report")
def command(artifact: str, capabilities: str | None, json_target: str | None, **given: Any) -> None:
    """Build TensorRT engines of an exported artifact.

    Writes an engine for prefill and one for decode, with --speculate also one that verifies drafts, to
    ARTIFACT/engines, with a manifest that is checked before they run. With TensorRT-RTX this needs no GPU. LUCID models
    need the plugin library; if there is none, one with the kernels for the artifact's type is built first, which takes
    minutes and a C++ compiler.

    Example: lucid-deploy build ./artifact --max-batch 8 --max-context 512
    """
    from lucid_deploy.artifact import open_artifact
    from lucid_deploy.runtimes.tensorrt.build import BuildOptions, build_engines

    listed = tuple(item.strip() for item in (capabilities or "").split(",") if item.strip())
    if capabilities is not None and not listed:
        raise LucidError("--compute-capability names no GPU; it takes a list such as 8.6,12.0. Leave it out for all.")
    options = BuildOptions(capabilities=listed, **given)
    opened = open_artifact(artifact)
    with progress("Building") as update:
        report = build_engines(opened, options, update, note)
    write_results(report.to_dict(), json_target, lambda: _show(report))


def _show(report: BuildReport) -> None:
    from lucid_deploy.runtimes.tensorrt.backend import dotted

    manifest, limits = report.manifest, report.manifest.limits
    capabilities = ", ".join(map(dotted, manifest.capabilities)) or "all that the backend supports"
    show(
        f"{report.directory}: {manifest.backend} {manifest.backend_version}, batch up to {limits.max_batch}, context "
        f"up to {limits.max_context}, prefill in chunks of {limits.prefill_chunk}; compute capability: {capabilities}"
    )
    table = Table("engine", "size", "layers", "computed by the plugin", "seconds")
    for stage, engine in manifest.engines.items():
        built = report.built[stage]
        plugin = ", ".join(f"{len(layers)} {name}" for name, layers in engine.plugin_layers.items()) or "none needed"
        table.add_row(engine.file, human_size(engine.size), str(built["layers"]), plugin, f"{built['seconds']:.1f}")
    console_out.print(table)
