"""Benchmark results as data and as a table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lucid_deploy.artifact import WEIGHTS
from lucid_deploy.artifact.quantization import EMBEDDING
from lucid_deploy.bench.machine import distrust
from lucid_deploy.bench.runner import Measurement, Plan
from lucid_deploy.cache.layout import ITEM_SIZES, layout_bytes
from lucid_deploy.model.description import describe, layout_of

if TYPE_CHECKING:
    from rich.table import Table

    from lucid_deploy.artifact import Artifact, Manifest
    from lucid_deploy.model.config import LucidConfig


def build_report(
    measurements: Sequence[Measurement],
    opened: dict[str, dict[str, Any]],
    plan: Plan,
    machine: dict[str, Any],
    artifacts: dict[str, Artifact] | None = None,
) -> dict[str, Any]:
    """Return the report of a benchmark as plain data.

    Args:
        measurements: All measurements; ratios are to those of the first contender.
        opened: By contender, the seconds and memory that opening it took, and its session's facts.
        plan: What was to be measured.
        machine: What :func:`~lucid_deploy.bench.machine.describe_machine` returns, and ``load_average_before``.
        artifacts: By contender, the artifact whose bytes a decode step reads; without it, or if its model has experts,
            no bandwidth is given.
    """
    first = measurements[0].contender
    base = {(item.stage, item.batch, item.length): item for item in measurements if item.contender == first}
    rows = []
    for item in measurements:
        row = {**asdict(item), "median": item.median, "tokens_per_second": item.tokens_per_second}
        row["ratio"] = paired_ratio(item.seconds, base[item.stage, item.batch, item.length].seconds)
        source = (artifacts or {}).get(item.contender)
        if source is not None and item.stage == "decode" and not _has_experts(source.config):  # only some experts run
            manifest = source.manifest
            read = decode_bytes(manifest, manifest.files[WEIGHTS]["size"], item.batch, item.length)
            row["bytes_per_second"] = read / item.median
        rows.append(row)
    return {
        "machine": machine,
        "plan": asdict(plan),
        "opened": opened,
        "measurements": rows,
        "distrust": distrust(machine.get("cores", 1), machine.get("load_average_before"), map(spread_of, rows)),
    }


def _has_experts(config: LucidConfig) -> bool:
    return any(map(config.experts_of, range(config.num_hidden_layers)))


def spread_of(row: dict[str, Any]) -> float:
    """Return the difference of a measurement's slowest and fastest rounds, over their median."""
    return float((max(row["seconds"]) - min(row["seconds"])) / row["median"])


def paired_ratio(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """Return median, min and max of a/b, taken round by round: a machine that slows down in a round slows both."""
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def decode_bytes(manifest: Manifest, weights: int, batch: int, context: int) -> int:
    """Return the bytes that a decode step reads: cache and weight file (``weights`` bytes) less an untied embedding."""
    config, record = manifest.config, manifest.quantization
    cache = layout_bytes(layout_of(describe(config, manifest.cache_dtype)), context) * batch
    if config.tie_word_embeddings:
        return weights + cache
    if record is not None and EMBEDDING in record.tensors:
        return weights - record.stored_size(EMBEDDING, manifest.dtype) + cache
    return weights - config.vocab_size * config.hidden_size * ITEM_SIZES[manifest.dtype] + cache


def table(report: dict[str, Any]) -> Table:
    """Return the measurements as a table a person reads."""
    from rich.markup import escape
    from rich.table import Table

    first = escape(report["measurements"][0]["contender"])
    ratio = f"ratio: median of the rounds' times over those of {first}, below 1 is faster; spread: slowest less fastest"
    out = Table(caption=f"{ratio} round over the median")
    for name in ("stage", "batch", "tokens", "contender", "ms", "spread", "tokens/s", "ratio", "peak MiB", "GB/s"):
        out.add_column(name)
    for row in report["measurements"]:
        spread = spread_of(row)
        speed = row.get("bytes_per_second")
        out.add_row(
            row["stage"],
            str(row["batch"]),
            str(row["length"]),
            escape(row["contender"]),
            f"{1e3 * row['median']:.2f}",
            f"{100 * spread:.0f} %",
            f"{row['tokens_per_second']:.0f}",
            f"{row['ratio']['median']:.3f}",
            f"{row['peak'] / 2**20:.0f}",
            "" if speed is None else f"{speed / 1e9:.1f}",
        )
    return out
