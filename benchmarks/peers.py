"""The medium model beside the alternatives: standard attention, in onnxruntime and in OpenVINO.

The same shape in float32, 8 and 4 bits, prefill and decode: all contenders of all types take turns within one run, so
that a machine that slows down slows all of them; each has a process of its own, and all take about 12 GB together. This
needs the library of kernels (``lucid-deploy plugin build --target onnxruntime``) and the extra ``openvino``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
import common
from rich.console import Console

from lucid_deploy.bench import Contender, Measurement, Plan, run_plan
from lucid_deploy.bench.machine import copy_bandwidth, describe_machine, distrust, load_average
from lucid_deploy.bench.report import build_report, spread_of, table
from lucid_deploy.cli._console import progress
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.runtimes.options import RuntimeOptions

TYPES = {"float32": None, "int8": QuantizeOptions("int8"), "int4": QuantizeOptions("int4", method="rtn")}


def contenders_of(lucid: Path, standard: Path, kind: str, kernels: str, threads: int) -> list[Contender]:
    """Export both checkpoints with weights of one type; return LUCID, and standard in onnxruntime and OpenVINO.

    Args:
        lucid: The checkpoint with LUCID; artifacts are written beside it.
        standard: Its twin with standard attention.
        kind: The type of the weights, with which the contenders' names end.
        kernels: What onnxruntime runs: ``library`` or ``functions``.
        threads: Threads of each contender.
    """
    ours, openvino = RuntimeOptions(kernels=kernels, threads=threads), RuntimeOptions("openvino", threads=threads)
    options = ExportOptions(quantize=TYPES[kind])  # all forms of the graphs: each runtime opens the one it runs
    made = {
        name: str(export(source, lucid.with_name(f"{name}-{kind}"), options).directory)
        for name, source in (("lucid", lucid), ("standard", standard))
    }
    return [
        Contender(f"lucid-{kind}", "artifact", made["lucid"], ours),
        Contender(f"standard-{kind}", "artifact", made["standard"], ours),
        Contender(f"openvino-{kind}", "artifact", made["standard"], openvino),
    ]


def reports_of(
    contenders: dict[str, list[Contender]],
    measurements: list[Measurement],
    opened: dict[str, dict[str, Any]],
    plan: Plan,
    machine: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """Return a report for each type; ratios are to the first contender of the type, in the same round."""
    reports = {}
    for kind, mine in contenders.items():
        names = {contender.name for contender in mine}
        rows = [each for each in measurements if each.contender in names]
        reports[kind] = build_report(rows, {name: opened[name] for name in opened if name in names}, plan, machine)
    return reports


@click.command()
@click.option("--repeats", default=3, show_default=True, help="Rounds that count.")
@click.option("--lengths", default="512,2048,8192", show_default=True, help="Prompt lengths and contexts.")
@click.option("--types", default=",".join(TYPES), show_default=True, help="What to measure, with commas.")
@click.option("--shape", default="medium", show_default=True, help="One of the shapes in common.py.")
@click.option("--kernels", default="library", show_default=True, help="What onnxruntime runs: library or functions.")
@click.option("--threads", default=2, show_default=True, help="Threads of a contender.")
def main(repeats: int, lengths: str, types: str, shape: str, kernels: str, threads: int) -> None:
    """Measure, and write benchmarks/results/peers.json."""
    load = load_average()
    plan = Plan(tuple(map(int, lengths.split(","))), repeats=repeats)
    with tempfile.TemporaryDirectory() as directory, progress("Preparing") as update:
        lucid = common.write_random_checkpoint(Path(directory) / "checkpoint", shape)
        standard = common.write_standard_twin(lucid)
        contenders = {kind: contenders_of(lucid, standard, kind, kernels, threads) for kind in types.split(",")}
        bandwidth = copy_bandwidth()
        measured, opened = run_plan([each for mine in contenders.values() for each in mine], plan, "float32", update)
    machine = {**describe_machine(), "copy_bytes_per_second": bandwidth, "load_average_before": load}
    reports = reports_of(contenders, measured, opened, plan, machine)
    spreads = [spread_of(row) for report in reports.values() for row in report["measurements"]]
    doubts = distrust(machine["cores"], load, spreads)
    for report in reports.values():
        Console(width=120).print(table(report))
        del report["machine"], report["plan"]
    for doubt in doubts:
        print(f"Do not trust these times: {doubt}.")
    common.write_result("peers", {"machine": machine, "plan": vars(plan), "distrust": doubts, "types": reports})


if __name__ == "__main__":
    main()
