"""What quantization gains and costs: size, speed and error of a medium model's weights in several types.

A medium model (hidden 1024, 8 layers, 16 heads on 4 key/value heads of width 64, random weights) runs
prefill and decode in onnxruntime, all contenders in turn, with the library of kernels (``lucid-deploy plugin build
--target onnxruntime``) and with the functions in the graphs. The error of one matrix multiplication of that size
against float64 is measured for several block sizes and both ``--activations``.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from common import write_random_checkpoint, write_result

from lucid_deploy.artifact import WEIGHTS, Artifact, open_artifact
from lucid_deploy.artifact.quantization import WHOLE_SCHEMES, Quantization, QuantizedTensor
from lucid_deploy.artifact.quantized_bytes import dequantize
from lucid_deploy.bench import Contender, Plan, run_plan
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.export.quantize.nearest import quantize_matrix
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.runtimes import RuntimeOptions
from lucid_deploy.runtimes.torch.quantized_activations import round_to_int8

VARIANTS: dict[str, ExportOptions] = {
    "float32": ExportOptions(cache="static"),
    "float16": ExportOptions(dtype="float16", cache="static"),
    **{
        f"{scheme}-{block}": ExportOptions(
            cache="static", quantize=QuantizeOptions(scheme, block_size=block, method="rtn")
        )
        for scheme in WHOLE_SCHEMES
        for block in (32, 128)
    },
    "int4-32-float": ExportOptions(
        cache="static", quantize=QuantizeOptions("int4", block_size=32, activations="float", method="rtn")
    ),
}
# Methods whose graphs multiply in another way than round-to-nearest's.
FORMS: dict[str, ExportOptions] = {
    **{name: VARIANTS[name] for name in ("float32", "int4-32")},
    "int4-32-hqq": ExportOptions(cache="static", quantize=QuantizeOptions("int4", method="hqq")),
    "int4-64-hqq": ExportOptions(cache="static", quantize=QuantizeOptions("int4", method="hqq", block_size=64)),
}


def make_artifacts(root: Path, variants: dict[str, ExportOptions]) -> dict[str, Artifact]:
    """Export every variant that is not there yet."""
    checkpoint = root / "checkpoint"
    if not checkpoint.is_dir():
        write_random_checkpoint(checkpoint, "medium")
    return {
        name: open_artifact(root / name) if (root / name).is_dir() else export(checkpoint, root / name, options)
        for name, options in variants.items()
    }


def product_errors(width: int = 1024, rows: int = 1024) -> list[dict[str, Any]]:
    """Return relative errors of multiplying by quantized weights, by block size, for float and int8 inputs.

    ``normal`` inputs are independent; with ``outliers`` one in a hundred is 20 times as large, as in trained models.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, width, generator=generator) * width**-0.5
    normal = torch.randn(256, width, generator=generator)
    outliers = normal * torch.where(torch.rand(width, generator=generator) < 0.01, 20.0, 1.0)
    found = []
    for scheme, bits in WHOLE_SCHEMES.items():
        for block in (16, 32, 64, 128, 256):
            tensor = QuantizedTensor((rows, width), block)
            record = Quantization(scheme, bits, "matmulnbits", "int8", {"w": tensor}, (), "onnxruntime")
            packed, scales = (np.concatenate(part) for part in zip(*quantize_matrix(weight, tensor, bits), strict=True))
            rounded = torch.from_numpy(dequantize(record, "w", packed.reshape(-1), scales))
            facts: dict[str, Any] = {"scheme": scheme, "block_size": block, "bits": bits + 32 / block}
            for kind, x in (("normal", normal), ("outliers", outliers)):
                exact = x.double() @ weight.double().mT
                for inputs, y in (("float", x), ("int8", round_to_int8(x, block))):
                    error = y.double() @ rounded.mT - exact
                    facts[f"{kind}, {inputs}"] = float(error.norm() / exact.norm())
            found.append(facts)
    return found


def faster(base: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Return median, least and most of base over other, by round, so that a machine that slows down favours neither."""
    ratios = [a / b for a, b in zip(base, other, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def race(artifacts: dict[str, Artifact], sizes: dict[str, int], kernels: str, repeats: int) -> list[dict[str, Any]]:
    """Time decode and prefill of every variant; ``sizes`` has the bytes of each variant's weights."""
    contenders = [
        Contender(name, "artifact", str(item.directory), RuntimeOptions(threads=2, kernels=kernels))
        for name, item in artifacts.items()
    ]
    decode = Plan(lengths=(512,), stages=("decode",), repeats=repeats, steps=16)
    measurements, opened = run_plan(contenders, decode, "float32")
    prefill, _ = run_plan(contenders, Plan(lengths=(512,), stages=("prefill",), repeats=3), "float32")
    seconds = {(item.contender, item.stage): item.seconds for item in (*measurements, *prefill)}
    read = {name: size - embedding_bytes(artifacts[name]) for name, size in sizes.items()}
    return [
        {
            "name": name,
            "weights_mib": size / 2**20,
            "smaller": sizes["float32"] / size,
            "read_mib": read[name] / 2**20,
            "reads_less": read["float32"] / read[name],
            "decode_ms": 1e3 * statistics.median(seconds[name, "decode"]),
            "decode_faster": faster(seconds["float32", "decode"], seconds[name, "decode"]),
            "prefill_512_ms": 1e3 * statistics.median(seconds[name, "prefill"]),
            "prefill_faster": faster(seconds["float32", "prefill"], seconds[name, "prefill"]),
            "resident_mib": opened[name]["resident"] / 2**20,
            "open_seconds": opened[name]["seconds"],
        }
        for name, size in sizes.items()
    ]


def embedding_bytes(artifact: Artifact) -> int:
    """Return the bytes of the embedding, neither tied nor quantized here; a token reads one row of it."""
    config = artifact.config
    return config.vocab_size * config.hidden_size * (2 if artifact.manifest.dtype == "float16" else 4)


@click.command()
@click.option("--repeats", default=7, show_default=True, help="Rounds that count.")
@click.option("--work", type=click.Path(path_type=Path), help="Keep artifacts here, and use those that are there.")
@click.option("--prepare", is_flag=True, help="Only export, into --work.")
@click.option("--methods", is_flag=True, help="Instead, measure the methods whose graphs multiply in another way.")
def main(repeats: int, work: Path | None, prepare: bool, methods: bool) -> None:
    """Measure the medium model in several types, or in 4 bits by several methods."""
    with tempfile.TemporaryDirectory() as scratch:
        root = work or Path(scratch)
        root.mkdir(parents=True, exist_ok=True)
        artifacts = make_artifacts(root, FORMS if methods else VARIANTS)
        if prepare:
            return
        sizes = {name: item.manifest.files[WEIGHTS]["size"] for name, item in artifacts.items()}
        tables = {kernels: race(artifacts, sizes, kernels, repeats) for kernels in ("library", "functions")}
    result: dict[str, Any] = {"model": "medium, static cache, 512 tokens", "variants": tables}
    if not methods:
        result["product_errors"] = product_errors()
    print(json.dumps(result, indent=2))
    write_result("quantized_forms" if methods else "quantized", result)


if __name__ == "__main__":
    main()
