"""Long context on the CPU: chunked prefill of 32,768 tokens within bounded memory, decode at 131,072 tokens.

The model has 2 layers, 8 heads on 2 key/value heads of width 64, in float32. Memory is the process's own peak.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click
import numpy as np
from common import in_process, write_random_checkpoint, write_result

from lucid_deploy.artifact import WEIGHTS, open_artifact
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.runtimes.inspection import memory_needed

MIB = 2**20


@click.command()
@click.option("--length", default=32768, show_default=True, help="Tokens to prefill.")
@click.option("--chunk", default=512, show_default=True, help="Tokens of a chunk.")
@click.option("--context", default=131072, show_default=True, help="Tokens of context to decode at.")
def main(length: int, chunk: int, context: int) -> None:
    """Measure long prefill and long decode."""
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = write_random_checkpoint(Path(scratch) / "checkpoint", "long")
        growing = export(checkpoint, Path(scratch) / "growing")
        static = export(checkpoint, Path(scratch) / "static", ExportOptions(cache="static"))
        weights = growing.manifest.files[WEIGHTS]["size"]
        cache = memory_needed(growing, 1, length)["cache"]
        chunked = in_process("long_context_worker", f"prefill({str(growing.directory)!r}, {length}, {chunk})")
        whole = in_process("long_context_worker", f"prefill({str(growing.directory)!r}, {length}, None)")
        decoded = {
            name: in_process("long_context_worker", f"decode({str(artifact.directory)!r}, {context})")
            for name, artifact in (("growing", growing), ("static", static))
        }
        predicted = {
            name: memory_needed(open_artifact(artifact.directory), 1, context)["total"]
            for name, artifact in (("growing", growing), ("static", static))
        }

    def difference(key: str) -> float:
        a, b = np.ravel(chunked[key]), np.ravel(whole[key])
        return float(np.linalg.norm(a - b) / np.linalg.norm(b))

    beyond = {name: (run["peak"] - weights - cache) / MIB for name, run in (("chunked", chunked), ("whole", whole))}
    result = {
        "prefill": {
            "length": length,
            "chunk": chunk,
            "seconds": {"chunked": chunked["seconds"], "whole": whole["seconds"]},
            "peak_beyond_weights_and_cache_mib": beyond,
            "chunked_against_whole": {"logits": difference("logits"), "last rows of Y": difference("rows")},
        },
        "decode": {
            "context": context,
            "seconds_per_token": {name: run["seconds"] for name, run in decoded.items()},
            "peak_mib": {name: run["peak"] / MIB for name, run in decoded.items()},
            "predicted_mib": {name: size / MIB for name, size in predicted.items()},
        },
    }
    print(json.dumps(result, indent=2))
    write_result("long_context", result)


if __name__ == "__main__":
    main()
