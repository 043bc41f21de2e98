"""Every way of storing the bundled model's weights side by side: bits, size, error, KL divergence, top token, speed.

Each way is an artifact in blocks of 32; learned ones learn from 300 prompts of the task. ``stored`` is a checkpoint
that was rounded before, in the layout of compressed-tensors, with scales in float16. Errors are those of logits on
prompts that nothing learned from, against the checkpoint in float64: of the weights alone, and of the artifact as
onnxruntime runs it (inputs of quantized products in int8); so are the answers to questions for needles in texts of 500
tokens. All artifacts decode in turn; the ratio to float32's time is taken round by round. The model is small, so its
times are mostly those of starting operators.

    python benchmarks/methods_side_by_side.py
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from common import RESULTS, logit_errors, recall_texts, write_result
from safetensors.torch import load_file, save_file

from lucid_deploy.artifact import WEIGHTS, Artifact, open_artifact
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.bench import Contender, Plan, run_plan
from lucid_deploy.evaluation import compare, evaluate, needles_task
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.model.checkpoint import DEMO, load_model, resolve
from lucid_deploy.runtimes import RuntimeOptions, open_session
from lucid_deploy.runtimes.session import Array
from lucid_deploy.runtimes.torch.artifact_weights import load_artifact_model

IMAGE = Path(__file__).parents[1] / "build" / "quantized-methods"
WAYS: dict[str, tuple[str, QuantizeOptions | None]] = {
    "float32": ("float32", None),
    "float16": ("float16", None),
    "int8 rtn": ("float32", QuantizeOptions("int8")),
    "int8 gptq": ("float32", QuantizeOptions("int8", method="gptq")),
    "int4 rtn": ("float32", QuantizeOptions("int4")),
    "int4 k_quant": ("float32", QuantizeOptions("int4", method="k_quant")),
    "int4 hqq": ("float32", QuantizeOptions("int4", method="hqq")),
    "int4 hqq, blocks of 64": ("float32", QuantizeOptions("int4", block_size=64, method="hqq")),
    "int4 awq": ("float32", QuantizeOptions("int4", method="awq")),
    "int4 gptq": ("float32", QuantizeOptions("int4", method="gptq")),
    "int4 stored": ("float32", QuantizeOptions("stored")),
    "int4 auto, 6 bits": ("float32", QuantizeOptions("int4", method="auto", target_bits=6.0)),
}
# Where names stand that do not stand right of their points.
LEFT = {"ha": "right", "xytext": (-8, -3)}
PLACES: dict[str, Any] = {
    "int4 stored": {"ha": "center", "xytext": (0, 18)},
    "int4 gptq": LEFT,
    "int4 auto, 6 bits": LEFT,
}
PLACES |= {"int4 rtn": {"ha": "right", "xytext": (-8, 2)}, "int4 awq": {"ha": "right", "xytext": (-8, -9)}}
PLACES |= {
    "int4 k_quant": {"xytext": (8, 11)},
    "int4 hqq": {"xytext": (8, -14)},
    "int4 hqq, blocks of 64": {"xytext": (8, -1)},
}
COLORS = {"float": "#777777", "int8": "#b0792b", "int4": "#1f5fbf"}


def write_stored(directory: Path) -> Path:
    """Write the bundled model rounded to 4 bits as compressed-tensors stores it, two scales of 32 inputs in float16."""
    shutil.copytree(resolve(DEMO), directory)
    file = directory / "model.safetensors"
    tensors = {}
    for name, weight in load_file(file).items():
        if not name.endswith("_proj.weight"):
            tensors[name] = weight
            continue
        blocks = weight.float().unflatten(1, (-1, 32))
        scales = (blocks.abs().amax(-1, keepdim=True) / 7.5).half()
        codes = ((blocks / scales.float()).round().clamp(-8, 7) + 8).flatten(1).to(torch.int32).unflatten(1, (-1, 8))
        stem = name.removesuffix("weight")
        tensors[stem + "weight_packed"] = (codes << torch.arange(0, 32, 4)).sum(-1).to(torch.int32)
        tensors[stem + "weight_scale"] = scales[..., 0].contiguous()
        tensors[stem + "weight_shape"] = torch.tensor(weight.shape)
    save_file(tensors, file)
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"]}
    raw = json.loads((directory / "config.json").read_text())
    raw["quantization_config"] = {**settings, "config_groups": {"group_0": group}}
    (directory / "config.json").write_text(json.dumps(raw))
    return directory


def make(root: Path, name: str, text: Path) -> Artifact:
    """Export a way, if it is not there yet."""
    output = root / name.replace(" ", "-").replace(",", "")
    if output.is_dir():
        return open_artifact(output)
    dtype, quantize = WAYS[name]
    source: str | Path = DEMO
    if quantize is not None and quantize.scheme == "stored":
        source = root / "stored-checkpoint"
        if not source.is_dir():
            write_stored(source)
    calibration = text if quantize is not None and quantize.learns else None
    return export(source, output, ExportOptions(dtype, logits="all", quantize=quantize, calibration=calibration))


def facts_of(artifact: Artifact, ids: Array, exact: Array) -> dict[str, Any]:
    """Return bits, sizes and errors of an artifact over ``ids``, int64 ``(B, N)``."""
    record = artifact.manifest.quantization
    with torch.inference_mode():
        alone = load_artifact_model(artifact, dtype="float64")(torch.from_numpy(ids))[0].numpy()
    session = open_session(artifact, threads=1)
    run = np.asarray(session.prefill_all(ids, session.empty_cache(len(ids))))
    bits = {"float32": 32.0, "float16": 16.0}[artifact.manifest.dtype]
    return {
        "bits_per_weight": bits if record is None else record.bits_per_weight(artifact.manifest.dtype),
        "weights_bytes": artifact.manifest.files[WEIGHTS]["size"],
        "disk_bytes": sum(path.stat().st_size for path in artifact.directory.iterdir()),
        "weights": logit_errors(alone, exact),
        "as_run": logit_errors(run, exact),
    }


def needles(artifacts: dict[str, Artifact]) -> dict[str, dict[str, float]]:
    """Ask every artifact for one of 4 needles in texts of 500 tokens, 500 times; compare with float32's answers."""
    tokenizer, found, reference = TextTokenizer(resolve(DEMO)), {}, None
    for name, artifact in artifacts.items():
        session = open_session(artifact, threads=1)
        task = needles_task(tokenizer, session.config.max_position_embeddings, needles=4, lengths=[500], limit=500)
        report = evaluate(session, tokenizer, task, batch=8)
        reference = reference or report
        found[name] = {**report.score.to_dict(), "relative_accuracy": compare(report, reference).relative}
        print(name, found[name], flush=True)
    return found


def race(artifacts: dict[str, Artifact], repeats: int) -> dict[str, dict[str, float]]:
    """Decode with all artifacts in turn, at 128 tokens."""
    options = RuntimeOptions(threads=1)
    contenders = [Contender(name, "artifact", str(item.directory), options) for name, item in artifacts.items()]
    measured, _ = run_plan(contenders, Plan((128,), stages=("decode",), repeats=repeats, steps=32), "float32")
    seconds = {item.contender: item.seconds for item in measured}
    base = seconds["float32"]
    return {
        name: {
            "tokens_per_second": 1 / statistics.median(mine),
            "faster": statistics.median(a / b for a, b in zip(base, mine, strict=True)),
            "faster_least": min(a / b for a, b in zip(base, mine, strict=True)),
            "faster_most": max(a / b for a, b in zip(base, mine, strict=True)),
        }
        for name, mine in seconds.items()
    }


def draw(ways: dict[str, Any]) -> None:
    """Draw the weights' error against their size, every way as a point, as PNG and SVG."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "lucid"  # the same file each time
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    for name, facts in ways.items():
        size, alone, run = facts["weights_bytes"] / 2**20, facts["weights"]["relative_error"], facts["as_run"]
        color = next(color for start, color in COLORS.items() if name.startswith(start))
        if name != "float32":  # whose weights are exact
            axis.plot(size, alone, "o", color=color, label="weights alone" if name == "float16" else None)
        axis.plot(
            size,
            run["relative_error"],
            "o",
            color=color,
            markerfacecolor="none",
            label="as onnxruntime runs it" if name == "float16" else None,
        )
        axis.annotate(
            name,
            (size, run["relative_error"] if name == "float32" else alone),
            textcoords="offset points",
            color=color,
            **PLACES.get(name, {"xytext": (8, -3)}),
        )
    axis.legend(loc="lower left")
    best, nearest = (ways[f"int4 {method}"]["weights"]["relative_error"] for method in ("gptq", "rtn"))
    axis.set(xscale="log", yscale="log", xlabel="size of the weights, MiB (further left is smaller)")
    axis.set_ylabel("relative error of the logits (lower is better)")
    axis.set_title(f"At the same size GPTQ leaves {best / nearest:.2f} of the error that nearest int4 numbers leave")
    axis.set_ylim(top=0.3)
    axis.set_xlim(0.3, 1.6 * max(facts["weights_bytes"] for facts in ways.values()) / 2**20)
    ticks = (0.3, 0.5, 0.8, 1.2, 2.4)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    IMAGE.parent.mkdir(exist_ok=True)
    for suffix in (".png", ".svg"):
        figure.savefig(IMAGE.with_suffix(suffix), dpi=110, metadata={"Date": None} if suffix == ".svg" else None)
    plt.close(figure)


@click.command(help=__doc__)
@click.option("--work", type=click.Path(path_type=Path), help="Keep artifacts here, and use those that are there.")
@click.option("--repeats", default=7, show_default=True, help="Rounds that count.")
@click.option("--way", "chosen", multiple=True, type=click.Choice(list(WAYS)), help="Only these; may be repeated.")
@click.option("--prepare", is_flag=True, help="Only export, into --work.")
@click.option("--needles/--no-needles", "with_needles", default=True, help="Ask for needles in texts of 500 tokens.")
@click.option("--redraw", is_flag=True, help="Only draw what benchmarks/results has.")
def main(
    work: Path | None, repeats: int, chosen: tuple[str, ...], prepare: bool, with_needles: bool, redraw: bool
) -> None:
    """Export, measure, print, draw, and write benchmarks/results/methods_side_by_side.json."""
    if redraw:
        draw(json.loads((RESULTS / "methods_side_by_side.json").read_text())["ways"])
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = work or Path(scratch)
        root.mkdir(parents=True, exist_ok=True)
        text = root / "prompts.txt"
        prompts, unseen = recall_texts()
        text.write_text("\n".join(prompts))
        artifacts = {name: make(root, name, text) for name in chosen or WAYS}
        if prepare:
            return
        ids = unseen[: 8 * 400].reshape(8, 400).numpy()
        with torch.inference_mode():
            exact = load_model(DEMO, torch.float64)(torch.from_numpy(ids))[0].numpy()
        ways = {name: facts_of(artifact, ids, exact) for name, artifact in artifacts.items()}
        speed = race(artifacts, repeats)
        asked = needles(artifacts) if with_needles else {}
    for name, facts in ways.items():
        facts |= speed[name]
        facts |= {"needles of 500 tokens": asked[name]} if asked else {}
        print(name, json.dumps(facts), flush=True)
    draw(ways)
    write_result("methods_side_by_side", {"model": DEMO, "block_size": 32, "ways": ways})


if __name__ == "__main__":
    main()
