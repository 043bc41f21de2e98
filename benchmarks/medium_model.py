"""A medium model (hidden 1024, 8 layers, 16 heads on 4 key/value heads of width 64) through `lucid-deploy bench`.

Every artifact runs twice, with the library of kernels for onnxruntime and with the functions in its graphs. Prefill of
up to 2048 tokens is compared with standard attention, exported alike, and with PyTorch eager; decoding at up to 8192
tokens, with a growing and a static cache, is compared with standard attention on the same kind of cache. This needs the
library: `lucid-deploy plugin build --target onnxruntime`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import click
from common import RESULTS, write_random_checkpoint, write_standard_twin

from lucid_deploy.export import ExportOptions, export

PARTS = ("prefill", "decode", "decode-batches")


def bench(artifacts: list[Path], name: str, *arguments: str) -> None:
    """Run `lucid-deploy bench` with results in benchmarks/results."""
    RESULTS.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "lucid_deploy.cli", "bench", *map(str, artifacts), "--kernels", "both", *arguments]
    subprocess.run([*command, "--threads", "2", "--json", str(RESULTS / f"{name}.json")], check=True)


@click.command()
@click.option("--repeats", default="7", show_default=True, help="Rounds that count.")
@click.option("--parts", default=",".join(PARTS), show_default=True, help="What to measure, with commas.")
def main(repeats: str, parts: str) -> None:
    """Measure the medium model."""
    with tempfile.TemporaryDirectory() as scratch:
        artifacts = export_all(Path(scratch))
        measure(artifacts, repeats, parts.split(","))


def export_all(root: Path, shape: str = "medium") -> dict[str, Path]:
    """Export both kinds of attention with both kinds of cache."""
    lucid = write_random_checkpoint(root / "checkpoint", shape)
    return {
        f"{kind}-{cache}": export(source, root / f"{kind}-{cache}", ExportOptions(cache=cache)).directory
        for kind, source in (("lucid", lucid), ("standard", write_standard_twin(lucid)))
        for cache in ("growing", "static")
    }


def measure(artifacts: dict[str, Path], repeats: str, parts: list[str]) -> None:
    """Run the benchmarks whose names are given; each writes a file of its own."""
    growing = [artifacts["lucid-growing"], artifacts["standard-growing"]]
    static = [artifacts["lucid-static"], artifacts["standard-static"]]
    eager = [word for name in ("torch-dense", "torch-blocked") for word in ("--baseline", name)]
    for name in parts:
        if name == "prefill":
            bench(growing, name, "--stages", "prefill", "--lengths", "512,1024,2048", "--repeats", repeats, *eager)
        elif name == "decode":
            words = ("--stages", "decode", "--lengths", "512,2048,8192", "--repeats", repeats, *eager)
            bench([static[0], growing[0], static[1], growing[1]], name, *words)
        elif name == "decode-batches":
            words = ("--stages", "decode", "--lengths", "512,2048,8192", "--batches", "4", "--repeats", repeats)
            bench([static[0], growing[0], static[1], growing[1]], name, *words)
        else:
            raise click.UsageError(f"--parts knows prefill, decode and decode-batches, not {name}.")


if __name__ == "__main__":
    main()
