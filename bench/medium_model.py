"""A medium model (hidden 1024, 8 layers, 16 heads on 4 key/value heads of width 64) through `lucid-deploy bench`.

Prefill at 2048 tokens against standard attention exported alike, PyTorch eager and transformers; decode at up to 8192
tokens with growing and static cache against standard attention with the same kind of cache.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from common import RESULTS, write_random_checkpoint

from lucid_deploy.export import ExportOptions, export

PLOTS = Path(__file__).parent.parent / "docs" / "images"


def bench(artifacts: list[Path], name: str, *arguments: str) -> None:
    """Run `lucid-deploy bench` with results in bench/results and plots in docs/images."""
    RESULTS.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "lucid_deploy.cli", "bench", *map(str, artifacts), *arguments]
    subprocess.run(
        [*command, "--threads", "2", "--json", str(RESULTS / f"{name}.json"), "--plot", str(PLOTS / name)], check=True
    )


@click.command()
@click.option("--repeats", default="7", show_default=True, help="Rounds that count.")
def main(repeats: str) -> None:
    """Measure the medium model."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        lucid = write_random_checkpoint(root / "checkpoint", "medium")
        standard = root / "standard-checkpoint"
        standard.mkdir()
        for path in lucid.iterdir():
            if path.name != "config.json":
                (standard / path.name).symlink_to(path)
        raw = json.loads((lucid / "config.json").read_text())
        (standard / "config.json").write_text(json.dumps({**raw, "attention_type": "llama"}))
        artifacts = {
            f"{kind}-{cache}": export(source, root / f"{kind}-{cache}", ExportOptions(cache=cache)).directory
            for kind, source in (("lucid", lucid), ("standard", standard))
            for cache in ("growing", "static")
        }
        eager = [word for name in ("torch-dense", "torch-blocked", "transformers") for word in ("--baseline", name)]
        pair = [artifacts["lucid-growing"], artifacts["standard-growing"]]
        bench(pair, "prefill", "--stages", "prefill", "--lengths", "512,1024,2048", "--repeats", repeats, *eager)
        bench(
            [artifacts["lucid-static"], artifacts["lucid-growing"], artifacts["standard-static"], pair[1]],
            "decode",
            *("--stages", "decode", "--lengths", "512,2048,8192", "--repeats", repeats, *eager),
        )
        bench(
            [artifacts["lucid-static"], artifacts["lucid-growing"]],
            "decode-batches",
            *("--stages", "decode", "--lengths", "2048", "--batches", "1,2,4", "--repeats", repeats),
        )


if __name__ == "__main__":
    main()
