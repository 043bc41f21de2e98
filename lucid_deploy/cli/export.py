"""``lucid-deploy export``."""

from __future__ import annotations

import click


@click.command("export")
@click.argument("checkpoint")
@click.option("-o", "--output", required=True, type=click.Path(), help="Directory to make, such as ./artifact.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Type of weights and cache. The solve, norms and softmax are computed in float32 in any case.",
)
@click.option(
    "--logits",
    type=click.Choice(["last", "all"]),
    default="last",
    show_default=True,
    help="Whether prefill returns logits of each row's last token, or of all new tokens.",
)
@click.option(
    "--cache",
    type=click.Choice(["growing", "static"]),
    default="growing",
    show_default=True,
    help="growing: present tensors are past ones plus the new rows. static: decode writes in place into buffers.",
)
@click.option("--overwrite", is_flag=True, help="Replace an artifact that is already at the output.")
@click.option(
    "--json", "json_target", metavar="FILE", help="Write the manifest's summary as JSON to FILE; - is stdout."
)
def command(
    checkpoint: str, output: str, dtype: str, logits: str, cache: str, overwrite: bool, json_target: str | None
) -> None:
    """Export a checkpoint to prefill and decode ONNX graphs.

    CHECKPOINT is a directory with config.json and safetensors, or the word demo for the bundled one. The output appears
    complete or not at all.

    Example: lucid-deploy export demo --output ./artifact
    """
    from lucid_deploy.cli._console import console_out, human_size, progress, write_json
    from lucid_deploy.export import ExportOptions, export

    with progress("Exporting") as update:
        artifact = export(checkpoint, output, ExportOptions(dtype, logits, overwrite, cache), update)
    files = artifact.manifest.files
    if json_target is not None:
        write_json({"artifact": str(artifact.directory), "dtype": dtype, "logits": logits, "files": files}, json_target)
    if json_target != "-":
        sizes = ", ".join(
            f"{name} {human_size(files[name]['size'])}" for name in ("prefill.onnx", "decode.onnx", "weights.bin")
        )
        console_out.print(f"Exported {checkpoint} to {artifact.directory}: {sizes}", soft_wrap=True, markup=False)
