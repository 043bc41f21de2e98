"""The command ``lucid-deploy export``: write a checkpoint as prefill and decode ONNX graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lucid_deploy.cli._command import Command
from lucid_deploy.cli._console import human_size, note, progress, show, write_results
from lucid_deploy.cli._options import NamedFolder, choice_option, json_option, trust_option, type_option
from lucid_deploy.cli._sources import refuse_given
from lucid_deploy.errors import LucidError

if TYPE_CHECKING:
    from lucid_deploy.artifact import Artifact
    from lucid_deploy.artifact.quantization import Method
    from lucid_deploy.export.quantize.options import QuantizeOptions
    from lucid_deploy.parity.perplexity import TextCost

_QUANTIZATION = (
    *("quantize", "quantize_format", "block_size", "keep_float", "quantize_embeddings", "activations", "method"),
    *("calibration_tokens", "equalize", "head_bits"),
)


@click.command("export", cls=Command)
@click.argument("checkpoint")
@click.option("-o", "--output", required=True, type=click.Path(), help="Directory to make, such as ./artifact.")
@type_option(
    "--dtype",
    ["float32", "float16", "bfloat16"],
    help="Type of weights and arithmetic. The solve, norms and softmax are computed in float32 in any case.",
)
@choice_option(
    "--logits", ["last", "all"], help="Whether prefill returns logits of each row's last token, or of all new tokens."
)
@click.option(
    "--cache",
    type=click.Choice(["growing", "static"]),
    help="Write only graphs whose cache grows, or only ones that write in place into static buffers; default: all.",
)
@type_option(
    "--cache-dtype",
    ["auto", "float16", "int8", "fp8"],
    help="Type of cached K and Y; auto: the model's. int8 and fp8 (E4M3, for TensorRT from compute capability 8.9) "
    "have a scale for each row of a head.",
)
@choice_option(
    "--state-dtype",
    ["float32", "model"],
    help="Type of delta layers' recurrent states between calls; model: as --dtype, to which each call rounds them.",
)
@choice_option(
    "--diagonal",
    ["unit", "training"],
    help="Diagonal of L in LUCID layers: 1, or what the authors' training code divides by (below 1 for small keys).",
)
@click.option(
    "--opset",
    type=click.Choice(["23", "24"]),
    help="ONNX operator set of graphs with a static cache; default: 24. With 23, the version of all other "
    "graphs, they also run in OpenVINO and in onnxruntime before 1.25.",
)
@click.option("--inline", is_flag=True, help="For OpenVINO: write only graphs without functions, so without kernels.")
@click.option(
    "--calibration",
    type=click.Path(),
    metavar="FILE",
    help="UTF-8 text like what the model will read, from which int4 learns.",
)
@click.option(
    "--quantize",
    type=click.Choice(["int8", "int4", "fp8", "nvfp4", "stored"]),
    help="Quantize the weights of linear layers and lm_head: to whole numbers, or for TensorRT to fp8 (E4M3) or nvfp4. "
    "stored: keep the numbers of a quantized checkpoint, as without this option.",
)
@choice_option(
    "--quantize-format",
    ["auto", "matmulnbits", "qdq"],
    help="matmulnbits: onnxruntime's operators; qdq: DequantizeLinear, for TensorRT. auto: qdq for fp8 and nvfp4.",
)
@click.option("--block-size", type=int, metavar="N", help="Weights that share a scale: 16, 32, …, 256; default: 32.")
@click.option(
    "--keep-float",
    multiple=True,
    metavar="GLOB",
    help="Do not quantize these weights, such as 'layers.*.k_proj' or lm_head; may be repeated.",
)
@click.option("--quantize-embeddings", is_flag=True, help="Quantize an untied embedding too (matmulnbits only).")
@choice_option(
    "--activations",
    ["auto", "int8", "float"],
    help="Inputs of quantized weights: rounded block by block by onnxruntime on the CPU, which is fast, or left as "
    "they are. auto: int8 for int8 and int4, float for models with experts.",
)
@click.option(
    "--method",
    default="",
    metavar="NAME",
    help="How numbers are chosen: rtn, the nearest; hqq, with an offset for each block; distill, with scales "
    "learned over --calibration. Default: rtn; for int4 in matmulnbits distill with --calibration, else hqq, "
    "with 8 bits for the weights that need them.",
)
@click.option(
    "--equalize/--no-equalize",
    default=None,
    help="Scale columns of weights to similar sizes before rounding, which makes int4's error much smaller.",
)
@click.option(
    "--head-bits",
    type=click.Choice(["4", "8"]),
    callback=lambda _, __, value: None if value is None else int(value),
    help="Bits of lm_head, and of an embedding that is tied to it. Default: those of --quantize; see --method.",
)
@click.option(
    "--calibration-tokens",
    type=int,
    default=16384,
    show_default=True,
    metavar="N",
    help="How many tokens of the --calibration text distill learns from at most.",
)
@click.option(
    "--assume-unused",
    multiple=True,
    metavar="KEY",
    help="Ignore this unknown key of config.json, which the model's code does not use; may be repeated.",
)
@click.option(
    "--merge-adapter",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Add a LoRA adapter, as PEFT saves it, to the weights; they may be quantized afterwards.",
)
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    type=NamedFolder(),
    metavar="NAME=DIR",
    help="Keep a LoRA adapter apart, so that each row of a batch may have its own; may be repeated.",
)
@click.option(
    "--max-adapters",
    type=click.IntRange(1, 4096),
    metavar="N",
    help="Leave room for N adapters, to be added later with lucid-deploy adapters.",
)
@click.option(
    "--max-adapter-rank",
    type=click.IntRange(1, 4096),
    metavar="R",
    help="Leave room for this rank; default: that of the adapters, or 16.",
)
@trust_option
@click.option("--revision", metavar="NAME", help="Branch, tag or commit of a model of the Hub; default: main.")
@click.option("--overwrite", is_flag=True, help="Replace an artifact that is already at the output.")
@json_option("the manifest's summary")
def command(checkpoint: str, output: str, json_target: str | None, **given: Any) -> None:
    """Export a checkpoint to prefill and decode ONNX graphs.

    CHECKPOINT is a directory with config.json and safetensors, the word demo for the bundled one, or a model of the
    Hugging Face Hub, org/name. The output appears complete or not at all.

    Example: lucid-deploy export demo --output ./artifact
    """
    from lucid_deploy.artifact.tokenizer import advice
    from lucid_deploy.export import ExportOptions, export
    from lucid_deploy.runtimes.inspection import describe

    quantize = _quantize_options({name: given.pop(name) for name in _QUANTIZATION})
    calibration, opset = given.pop("calibration"), given.pop("opset")
    options = ExportOptions(
        quantize=quantize,
        calibration=None if calibration is None else Path(calibration),
        opset=None if opset is None else int(opset),
        **given,
    )
    with progress("Exporting", estimate=True) as update:
        artifact = export(checkpoint, output, options, update)
        cost = None if options.calibration is None else _cost(artifact, options.calibration, update)
    if not artifact.path("tokenizer.json").is_file():
        note(f"Note: {advice(artifact.directory)}")
    facts = {**describe(artifact), "cost": None if cost is None else asdict(cost)}
    write_results(facts, json_target, lambda: _show(checkpoint, artifact, cost))


def _cost(artifact: Artifact, calibration: Path, update: Callable[[str, int, int], None]) -> TextCost | None:
    """Return quantization's loss on the calibration text's held-out rows; None if not measured: a failure is noted."""
    from lucid_deploy.parity.perplexity import held_out_cost

    try:
        return held_out_cost(artifact, calibration, update)
    except LucidError as error:  # the artifact is complete all the same
        note(f"What quantization costs was not measured: {error}")
        return None


def _show(checkpoint: str, artifact: Artifact, cost: TextCost | None) -> None:
    from lucid_deploy.artifact import WEIGHTS
    from lucid_deploy.cli._facts import show_quantization
    from lucid_deploy.runtimes.inspection import compression, remarks, summary

    manifest = artifact.manifest
    names = [*(graph.file for graph in manifest.graphs.values()), WEIGHTS]
    sizes = ", ".join(f"{name} {human_size(manifest.files[name]['size'])}" for name in names)
    show(f"Exported {checkpoint} to {artifact.directory}: {sizes}; {summary(artifact)}")
    for remark in remarks(artifact):
        show(remark)
    if manifest.quantization is not None:
        show_quantization(manifest.quantization, manifest.dtype, compression(artifact))
        _show_cost(manifest.quantization.method, cost)
    if "float16" in (manifest.dtype, manifest.cache_dtype):
        show(f"To check that all values fit into float16 (up to 65504): lucid-deploy verify {artifact.directory}")


def _show_cost(method: Method, cost: TextCost | None) -> None:
    if cost is not None:
        kept = len(method.calibration["held_out"]) * method.calibration["row_tokens"]
        show(
            f"On {kept} held-out tokens of that text the perplexity is {cost.own:.4g}, before quantization it was "
            f"{cost.original:.4g}: {cost.sentence()}."
        )
    else:
        show("To measure what quantization costs: verify --text FILE, with text like what the model will read.")


def _quantize_options(given: dict[str, Any]) -> QuantizeOptions | None:
    from lucid_deploy.export.quantize.options import QuantizeOptions

    scheme = given.pop("quantize")
    if scheme is not None:
        form, embeddings = given.pop("quantize_format"), given.pop("quantize_embeddings")
        return QuantizeOptions(scheme, format=form, embeddings=embeddings, **given)
    refuse_given(
        click.get_current_context(),
        given.keys(),
        "is for quantized weights",
        "Add --quantize int8, int4, fp8 or nvfp4 (stored, where the checkpoint is quantized already), or leave it out.",
    )
    return None
