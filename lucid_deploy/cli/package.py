"""``lucid-deploy package``."""

from __future__ import annotations

import click

from lucid_deploy.cli._command import Command
from lucid_deploy.cli._options import artifact_argument, choice_option, json_option


@click.command("package", cls=Command)
@artifact_argument
@click.option("--target", type=click.Choice(["triton"]), required=True, help="Whose layout to write.")
@click.option("-o", "--output", required=True, type=click.Path(), help="The model repository, such as ./models.")
@click.option("--name", help="Name of the models, NAME-prefill and NAME-decode; default: the artifact's directory.")
@choice_option(
    "--backend",
    ["onnxruntime", "tensorrt"],
    help="onnxruntime takes the graphs, tensorrt the engines that lucid-deploy build --backend tensorrt made.",
)
@choice_option("--device", ["cpu", "gpu"], help="Where the models run.")
@click.option(
    "--instances", type=click.IntRange(min=1), default=1, show_default=True, help="Copies of each model per device."
)
@click.option("--overwrite", is_flag=True, help="Replace models of these names in the repository.")
@json_option("what was made")
def command(
    artifact: str,
    target: str,
    output: str,
    name: str | None,
    backend: str,
    device: str,
    instances: int,
    overwrite: bool,
    json_target: str | None,
) -> None:
    """Write a model repository for NVIDIA Triton Inference Server.

    Example: lucid-deploy package ./artifact --target triton --output ./models
    """
    from lucid_deploy.artifact import open_artifact
    from lucid_deploy.cli._console import console_out, write_json
    from lucid_deploy.packaging.triton import TritonOptions, package_triton

    opened = open_artifact(artifact)
    made = package_triton(opened, output, TritonOptions(name, backend, device, instances, overwrite))
    if json_target is not None:
        facts = {"artifact": str(opened.directory), "target": target, "backend": backend, "made": [*map(str, made)]}
        write_json(facts, json_target)
    if json_target != "-":
        shown = ", ".join(map(str, made))
        console_out.print(f"Packaged {opened.directory} for {target}: {shown}", soft_wrap=True, markup=False)
