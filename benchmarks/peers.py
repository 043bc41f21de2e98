"""The medium model beside what its users would otherwise take: standard attention in llama.cpp and in OpenVINO.

The same shape in float32, 8 and 4 bits, prefill and decode, all contenders of a type in turn. Needs the library of
kernels (``lucid-deploy plugin build --target onnxruntime``) and the extras ``bench`` and ``openvino``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import click
from common import RESULTS, write_random_checkpoint

from lucid_deploy.export import ExportOptions, export
from lucid_deploy.export.quantize_options import QuantizeOptions

PLOTS = Path(__file__).parent.parent / "docs" / "images"
TYPES = {"float32": None, "int8": QuantizeOptions("int8"), "int4": QuantizeOptions("int4")}
BASELINES = ("standard", "llama.cpp", "openvino")


@click.command()
@click.option("--repeats", default="5", show_default=True, help="Rounds that count.")
@click.option("--lengths", default="512,2048,8192", show_default=True, help="Prompt lengths and contexts.")
@click.option("--types", default=",".join(TYPES), show_default=True, help="What to measure, with commas.")
@click.option("--shape", default="medium", show_default=True, help="Of benchmarks/common.py.")
def main(repeats: str, lengths: str, types: str, shape: str) -> None:
    """Measure one type after the other; each writes benchmarks/results/peers-TYPE.json and its plots."""
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = write_random_checkpoint(Path(scratch) / "checkpoint", shape)
        for name in types.split(","):
            artifact = export(checkpoint, Path(scratch) / f"lucid-{name}", ExportOptions(quantize=TYPES[name]))
            command = [sys.executable, "-m", "lucid_deploy.cli", "bench", str(artifact.directory), "--threads", "2"]
            command += ["--lengths", lengths, "--repeats", repeats, "--json", str(RESULTS / f"peers-{name}.json")]
            command += [word for each in BASELINES for word in ("--baseline", each)]
            subprocess.run([*command, "--plot", str(PLOTS / f"peers-{name}")], check=True)


if __name__ == "__main__":
    main()
