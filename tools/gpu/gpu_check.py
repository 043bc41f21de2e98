"""Run the checks that need a GPU: kernels against float64, TensorRT plugin and engines, and the benchmark.

    make gpu-check            or: python -m tools.gpu.gpu_check [--quick] [--only kernels|engines|benchmark]

Writes JSON and a table with card, versions and commit to benchmarks/results/. Speed is measured only after the kernels
agreed with float64. Exit status: 0 every check passed, 1 a check failed, 2 there is no GPU (nothing is written).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lucid_deploy.bench.machine import describe_machine
from lucid_deploy.files import atomic_write

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
SECTIONS = ("kernels", "engines", "benchmark")
VERIFIED = (2, 8, 16)  # tokens that one step verifies; 16 is the maximum
# A quarter above the error of rounding alone with keys correlated 0.99; float32 is computed as three tf32 products.
LIMITS = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 6e-3}
RTX_CAPABILITIES = (75, 80, 86, 89, 120, 121)  # compute capabilities for which TensorRT-RTX 1.7 builds engines
FLASH_TARGET, DENSE_TARGET, DECODE_TARGET, VERIFY_TARGET = 1.2, 10.0, 1.02, 1.5
DRAFTED = "fox has red lamp, owl has blue cup. fox has"  # lookup finds drafts here, so the engine for drafts runs
Run = Callable[[list[str]], tuple[int, str]]
Log = Callable[[str], None]


class Gpu(Protocol):
    """What the checks need of a GPU; implemented by ``gpu_cases.TorchGpu`` and, in tests, by a fake GPU."""

    name: str
    capability: int

    def describe(self) -> dict[str, Any]:
        """Return the card and the versions."""

    def error(self, case: Any) -> float:
        """Return a kernel's relative error against float64."""

    def calls(self, shape: Any) -> dict[str, Callable[[], Any] | str]:
        """Return the calls to time, by name; for a call that cannot run, a text that says why."""

    def milliseconds(self, call: Callable[[], Any]) -> float:
        """Return the median time of a call."""


@dataclass
class Section:
    """The outcome of one part: ``passed``, ``failed`` or ``skipped``, with the reason, and its rows."""

    name: str
    status: str = "passed"
    reason: str = ""
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)

    def fail(self, reason: str) -> None:
        """Note a failure; the first reason is the one that is shown."""
        self.status, self.reason = "failed", self.reason or reason


def accuracy_cases(quick: bool) -> list[dict[str, Any]]:
    """Return the comparisons with float64: awkward lengths, correlated keys, past and padding, padded head widths."""
    widths, lengths = ((128,), (65,)) if quick else ((64, 68, 128), (1, 63, 65, 257, 1000))
    pasts = (0, 100)
    cases = [
        {"kernel": "solve", "dtype": dtype, "width": width, "correlation": correlation, "new": new, "past": past}
        for dtype, width, correlation, new, past in itertools.product(LIMITS, widths, (0.0, 0.9, 0.99), lengths, pasts)
    ]
    cases += [
        {"kernel": "decode", "dtype": dtype, "width": width, "correlation": correlation, "new": 1, "past": past}
        for dtype, width, correlation, past in itertools.product(LIMITS, widths, (0.0, 0.9, 0.99), (0, 1, 100, 1000))
    ]
    cases += [
        {"kernel": "decode", "dtype": dtype, "width": width, "correlation": correlation, "new": new, "past": 100}
        for dtype, width, correlation, new in itertools.product(LIMITS, widths, (0.9, 0.99), VERIFIED)
    ]
    return cases + [{**case, "padded": True} for case in cases if case["correlation"] == 0.9 and case["past"] == 100]


def shapes(quick: bool) -> list[dict[str, Any]]:
    """Return the measurements: 1 to 32 heads, 1K to 64K tokens, widths 64 and 128, both half types."""
    heads = (16,) if quick else (1, 2, 4, 8, 16, 32)
    lengths = (8192,) if quick else tuple(1024 << i for i in range(7))
    found = [
        {"kernel": "solve", "heads": count, "tokens": tokens, "width": width, "dtype": dtype}
        for dtype, width, count, tokens in itertools.product(("float16", "bfloat16"), (64, 128), heads, lengths)
    ]
    found += [
        {"kernel": "verify", "heads": 8, "tokens": 32768, "width": width, "dtype": dtype, "new": new}
        for dtype, width, new in itertools.product(("float16", "bfloat16"), (64, 128), VERIFIED)
    ]
    return found + [
        {"kernel": "decode", "heads": 8, "tokens": tokens, "width": width, "dtype": dtype}
        for dtype, width, tokens in itertools.product(
            ("float16", "bfloat16"), (64, 128), (32768,) if quick else (1024, 8192, 32768, 65536)
        )
    ]


def check_kernels(gpu: Gpu, make: Callable[..., Any], quick: bool, log: Log) -> Section:
    """Compare the kernels with float64."""
    section, worst = Section("kernels"), 0.0
    for case in accuracy_cases(quick):
        limit = LIMITS[case["dtype"]]
        try:
            error = gpu.error(make(**case))
        except Exception as problem:  # noqa: BLE001 (any failure on the GPU is a result)
            error = float("inf")
            section.fail(f"{case}: {type(problem).__name__}: {problem}")
        if not error <= limit:  # also when it is not a number
            section.fail(f"{case}: relative error {error:.1e}, at most {limit:.1e} expected")
        worst = max(worst, error / limit)
        section.rows.append({**case, "error": error if math.isfinite(error) else "not finite", "limit": limit})
    log(f"kernels: {len(section.rows)} comparisons, worst error {worst:.2f} of its limit")
    return section


def check_engines(gpu: Gpu, run: Run, log: Log) -> Section:
    """Build the plugin and engines of the bundled model, verify them against PyTorch, and run the tests for GPUs."""
    section = Section("engines")
    if gpu.capability not in RTX_CAPABILITIES:
        section.status = "skipped"
        section.reason = f"TensorRT-RTX has no support for compute capability {gpu.capability / 10}"
        return section
    program = [sys.executable, "-m", "lucid_deploy.cli"]
    with tempfile.TemporaryDirectory() as folder:
        steps: list[tuple[str, list[str]]] = [("plugin build", [*program, "plugin", "build"])]
        for dtype, cache in itertools.product(("float32", "float16"), ("growing", "static")):
            target, name = str(Path(folder, f"{dtype}-{cache}")), f"{dtype}, {cache} cache"
            export = ["export", "demo", "--output", target, "--dtype", dtype, "--cache", cache]
            steps.append((f"export, {name}", [*program, *export]))
            steps.append((f"build, {name}", [*program, "build", target, "--speculate"]))
            steps.append((f"verify, {name}", [*program, "verify", target, "--runtime", "tensorrt"]))
            drafts = ["--prompt", DRAFTED, "--max-new-tokens", "32", "--speculate", "lookup"]
            steps.append((f"speculate, {name}", [*program, "run", target, "--runtime", "tensorrt", *drafts]))
        steps.append(("tests for GPUs", [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(ROOT / "tests")]))
        for name, command in steps:
            status, output = run(command)
            section.rows.append({"step": name, "status": status})
            log(f"engines: {name}: {'ok' if status == 0 else 'FAILED'}")
            if status != 0:
                section.rows[-1]["output"] = output[-4000:]
                section.fail(f"{name}: {_last_line(output)}")
    return section


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no output"


def benchmark(gpu: Gpu, make: Callable[..., Any], quick: bool, log: Log) -> Section:
    """Time the kernels beside flash attention, the dense solve, and standard decoding."""
    section = Section("benchmark")
    for shape in shapes(quick):
        row: dict[str, Any] = dict(shape)
        try:
            for name, call in gpu.calls(make(**shape)).items():
                row[name] = call if isinstance(call, str) else gpu.milliseconds(call)
        except Exception as problem:  # noqa: BLE001 (the other shapes are still measured)
            row["error"] = f"{type(problem).__name__}: {problem}"
            section.fail(f"{shape}: {row['error']}")
        section.rows.append({**row, **ratios(row)})
        log("benchmark: " + ", ".join(f"{key} {value}" for key, value in section.rows[-1].items()))
    return section


def ratios(row: dict[str, Any]) -> dict[str, float]:
    """Return ratios of a row's times: LUCID over flash attention, standard decoding or one token; dense over LUCID."""

    def both(top: str, bottom: str) -> float | None:
        pair = (row.get(top), row.get(bottom))
        return None if any(not isinstance(time, float) for time in pair) else row[top] / row[bottom]

    found = {
        "over_flash": both("lucid", "flash"),
        "over_standard": both("lucid", "standard"),
        "over_one": both("lucid", "one"),
        "dense_over_lucid": both("dense", "lucid"),
    }
    return {name: value for name, value in found.items() if value is not None}


def judge(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare rows with the targets; the worst row of a target counts, and a target without rows is not measured."""
    rows = list(rows)
    solve = [row for row in rows if row["kernel"] == "solve"]
    large = [row["over_flash"] for row in solve if row["tokens"] >= 8192 and row["heads"] >= 16 and "over_flash" in row]
    dense = [row["dense_over_lucid"] for row in solve if row["tokens"] == 8192 and "dense_over_lucid" in row]
    decode = [row["over_standard"] for row in rows if row["tokens"] == 32768 and "over_standard" in row]
    verify = [row["over_one"] for row in rows if row.get("new") == 8 and "over_one" in row]
    targets = (
        ("solve over flash attention, from 8192 tokens and 16 heads up", f"≤ {FLASH_TARGET}", large, max),
        ("dense solve over solve, 8192 tokens", f"≥ {DENSE_TARGET}", dense, min),
        ("decode over standard attention, 32768 tokens", f"≤ {DECODE_TARGET}", decode, max),
        ("verifying 8 tokens over decoding one, 32768 tokens", f"≤ {VERIFY_TARGET}", verify, max),
    )
    judged = []
    for name, target, values, worst in targets:
        value, limit = (worst(values) if values else None), float(target.split()[1])
        met = None if value is None else (value <= limit if worst is max else value >= limit)
        judged.append({"target": name, "wanted": target, "worst": value, "met": met})
    return judged


def render(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    gpu, machine = report["gpu"], report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [
        f"# {gpu['card']}",
        "",
        f"Compute capability {gpu['compute_capability'] / 10}, CUDA {gpu['cuda']}, Triton {gpu['triton']}; {versions}; "
        f"commit {machine['commit']}; {report['date']}.",
        "",
        "| part | outcome | seconds | |",
        "|---|---|---|---|",
    ]
    lines += [f"| {s['name']} | {s['status']} | {s['seconds']:.0f} | {s['reason']} |" for s in report["sections"]]
    if report["targets"]:
        words = {True: "met", False: "**missed**", None: "not measured"}
        lines += ["", "| target | wanted | worst | |", "|---|---|---|---|"]
        for row in report["targets"]:
            worst = "" if row["worst"] is None else f"{row['worst']:.2f}"
            lines.append(f"| {row['target']} | {row['wanted']} | {worst} | {words[row['met']]} |")
    rows = [row for section in report["sections"] if section["name"] == "benchmark" for row in section["rows"]]
    columns = {"solve": ("lucid", "flash", "dense"), "decode": ("lucid", "standard"), "verify": ("lucid", "one")}
    for kernel, names in columns.items():
        lines += _times(kernel, names, [row for row in rows if row["kernel"] == kernel])
    return "\n".join(lines) + "\n"


def _times(kernel: str, names: tuple[str, ...], rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    fields = ("dtype", "width", "heads", "tokens", *(("new",) if "new" in rows[0] else ()))
    titles = (*fields, *(f"{name}, ms" for name in names), "ratio")
    lines = ["", f"## {kernel}", "", "| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for row in rows:
        times = [f"{row[name]:.3f}" if isinstance(row.get(name), float) else str(row.get(name, "")) for name in names]
        ratio = row.get("over_flash", row.get("over_standard", row.get("over_one")))
        shown = row.get("error", "") if ratio is None else f"{ratio:.2f}"
        lines.append("| " + " | ".join([*(str(row[key]) for key in fields), *times, shown]) + " |")
    return lines


def check(
    gpu: Gpu,
    make: tuple[Callable[..., Any], Callable[..., Any]],
    run: Run,
    only: set[str],
    quick: bool,
    log: Log,
) -> dict[str, Any]:
    """Run the parts and return the report.

    Args:
        gpu: The GPU.
        make: Two functions, which make a comparison and a measurement from their fields.
        run: Runs a command; returns exit status and output.
        only: The parts to run.
        quick: Whether to run fewer cases.
        log: Called with lines of progress.
    """
    sections: list[Section] = []
    if "benchmark" in only:
        only = only | {"kernels"}  # time only kernels that were checked

    def part(name: str, work: Callable[[], Section]) -> None:
        started = time.perf_counter()
        section = work() if name in only else Section(name, "skipped", "not asked for")
        section.seconds = time.perf_counter() - started
        sections.append(section)

    part("kernels", lambda: check_kernels(gpu, make[0], quick, log))
    part("engines", lambda: check_engines(gpu, run, log))
    wrong = sections[0].status == "failed"
    skipped = Section("benchmark", "skipped", "the kernels are wrong")
    part("benchmark", lambda: skipped if wrong else benchmark(gpu, make[1], quick, log))
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "gpu": gpu.describe(),
        "machine": describe_machine(),
        "versions": _versions(),
        "quick": quick,
        "sections": [asdict(section) for section in sections],
        "targets": judge(sections[2].rows) if sections[2].rows else [],
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in ("lucid-deploy", "torch", "tensorrt-rtx-cu13", "cuda-bindings"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write(report: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write JSON and Markdown files atomically; return both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = "gpu-check-" + re.sub(r"[^a-z0-9]+", "-", report["gpu"]["card"].lower()).strip("-")
    paths = folder / f"{stem}.json", folder / f"{stem}.md"
    for path, text in zip(paths, (json.dumps(report, indent=1) + "\n", render(report)), strict=True):
        atomic_write(path, text.encode())
    return paths


def run_command(command: list[str]) -> tuple[int, str]:
    """Run a command; return its exit status and its output."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return result.returncode, result.stdout


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, check, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one shape of each kind instead of all")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="run this part only; may be repeated")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for results (default: benchmarks/results)")
    options = parser.parse_args(arguments)
    try:
        from tools.gpu import gpu_cases

        gpu = gpu_cases.TorchGpu()
    except (ImportError, RuntimeError) as error:
        print(f"gpu-check needs an NVIDIA GPU, PyTorch for CUDA and Triton: {error}. Nothing was run.", file=sys.stderr)
        return 2
    make = (gpu_cases.Accuracy, gpu_cases.Shape)
    report = check(
        gpu, make, run_command, set(options.only or SECTIONS), options.quick, lambda line: print(line, flush=True)
    )
    for path in write(report, options.output):
        print(f"wrote {path}")
    return int(any(section["status"] == "failed" for section in report["sections"]))


if __name__ == "__main__":
    sys.exit(main())
