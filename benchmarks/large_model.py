"""The published 1.1-billion-parameter shape, random weights in shards: time and memory of export and of sessions."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import click
from common import in_process, write_random_checkpoint, write_result

MIB = 2**20


def export_peak(checkpoint: str, output: str, dtype: str, scheme: str | None = None) -> dict[str, float]:
    """Export in this process; return seconds in all, seconds before weights are written, and peak resident memory."""
    from lucid_deploy.export import ExportOptions, export
    from lucid_deploy.export.quantize.options import QuantizeOptions

    marks: dict[str, float] = {}

    def progress(text: str, _done: int, _total: int) -> None:
        marks.setdefault(text, time.perf_counter())

    started = time.perf_counter()
    quantize = None if scheme is None else QuantizeOptions(scheme, method="rtn")
    export(checkpoint, output, ExportOptions(dtype=dtype, quantize=quantize), progress)
    ended = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": ended - started, "tracing": marks["Writing weights"] - started, "peak": peak}


def sessions_memory(artifact: str) -> dict[str, float]:
    """Run prefill and decode once in onnxruntime; return the memory that is resident then, and its peak, in bytes."""
    import numpy as np

    from lucid_deploy.bench.machine import resident_bytes
    from lucid_deploy.runtimes import open_session

    session = open_session(artifact)
    cache = session.empty_cache(1)
    session.prefill(np.ones((1, 8), np.int64), cache)
    session.decode(np.ones((1, 1), np.int64), cache)
    return {"resident": resident_bytes("VmRSS"), "peak": resident_bytes("VmHWM")}


@click.command()
@click.option("--shape", default="published", show_default=True, help="One of the shapes in common.py.")
def main(shape: str) -> None:
    """Measure export and load of a large model."""
    with tempfile.TemporaryDirectory(dir=Path.home()) as scratch:
        checkpoint = write_random_checkpoint(Path(scratch) / "checkpoint", shape)
        weights = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
        started = time.perf_counter()
        shutil.copytree(checkpoint, Path(scratch) / "copy")
        subprocess.run(["sync"], check=True)
        copying = time.perf_counter() - started
        shutil.rmtree(Path(scratch) / "copy")
        result: dict[str, object] = {"shape": shape, "weights_mib": weights / MIB, "copy_seconds": copying}
        for name, dtype, scheme in (
            ("float32", "float32", None),
            ("float16", "float16", None),
            ("int4", "float32", "int4"),
        ):
            output = Path(scratch) / name
            run = in_process("large_model", f"export_peak({str(checkpoint)!r}, {str(output)!r}, {dtype!r}, {scheme!r})")
            result[f"export {name}"] = {
                **run,
                "peak_over_float32_weights": run["peak"] / weights,
                "seconds_over_copy_plus_tracing": run["seconds"] / (copying + run["tracing"]),
            }
            if name == "float32":
                stored = (output / "weights.bin").stat().st_size
                memory = in_process("large_model", f"sessions_memory({str(output)!r})")
                result["both sessions"] = {**memory, "peak_over_weights": memory["peak"] / stored}
            shutil.rmtree(output)
    print(json.dumps(result, indent=2))
    write_result("large_model", result)


if __name__ == "__main__":
    main()
