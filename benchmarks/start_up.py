"""Start-up: how long a new process takes to print help, and to the first token of the bundled model."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from common import write_result

from lucid_deploy.export import export

PROMPT = "fox has red lamp, owl has blue cup, bear has green key. owl has"


def seconds(*arguments: str) -> tuple[float, str]:
    """Run the command line in a new process; return its seconds and its stdout."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "lucid_deploy.cli", *arguments], capture_output=True, text=True, check=True
    )
    return time.perf_counter() - started, done.stdout


@click.command()
@click.option("--rounds", default=9, show_default=True, help="Processes of each kind.")
def main(rounds: int) -> None:
    """Measure start-up."""
    with tempfile.TemporaryDirectory() as scratch:
        artifact = export("demo", Path(scratch) / "artifact").directory
        helps, runs = [], []
        for _ in range(rounds):
            helps.append(seconds("--help")[0])
            whole, out = seconds("run", str(artifact), "--prompt", PROMPT, "--max-new-tokens", "1", "--json")
            assert json.loads(out)["text"] == "blue"
            runs.append(whole)
    result = {
        name: {"median": statistics.median(times), "min": min(times), "max": max(times)}
        for name, times in (("help", helps), ("run, first token and exit", runs))
    }
    print(json.dumps(result, indent=2))
    write_result("start_up", {"seconds": result})


if __name__ == "__main__":
    main()
