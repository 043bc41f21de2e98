"""Seeded faults: each line of ``tests/mutants.toml``, applied to a copy of the sources, must make its tests fail.

``python -m tests.mutants [NAME ...]`` runs all of them, or those whose name or file contains one of the
words. It prints one line for each fault and exits with 1 if any survives.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tests" / "mutants.toml"
MAPPED = ("export", "plugins", "conformance")  # top-level folders that are packages inside lucid_deploy
# Exports import nothing of these packages, so the test runs of faults in them share traces of models.
NOT_IN_EXPORTS = re.compile("lucid_deploy/(batching|bench|cli|doctor|evaluation|generation|parity|runtimes|serving)/")
NOTHING_COLLECTED = (4, 5)  # pytest's exit statuses for a wrong path and for no tests


@dataclass(frozen=True)
class Fault:
    """One line of the list: in ``file``, ``old`` (which occurs once) becomes ``new``; ``tests`` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


def read_faults() -> list[Fault]:
    """Return all faults, after checking that each can still be applied.

    Raises:
        SystemExit: A text is not in its file exactly once, a name is used twice, or a path of tests is missing.
    """
    faults = [Fault(**line) for line in tomllib.loads(LIST.read_text(encoding="utf-8"))["faults"]]
    problems = [f"{fault.name}: {problem}" for fault in faults if (problem := _problem(fault))]
    names = [fault.name for fault in faults]
    problems += [
        f"{name}: this name is used twice" for name in sorted({name for name in names if names.count(name) > 1})
    ]
    if problems:
        raise SystemExit("\n".join([f"{LIST.name} does not fit the sources:", *problems]))
    return faults


def _problem(fault: Fault) -> str:
    path = ROOT / fault.file
    if not path.is_file():
        return f"{fault.file} is missing"
    if (count := path.read_text(encoding="utf-8").count(fault.old)) != 1:
        return f"{fault.old!r} occurs {count} times in {fault.file}"
    if not all((ROOT / part.split("::")[0]).exists() for part in fault.tests.split()):
        return f"{fault.tests} is missing"
    return ""


def copy_sources(target: Path) -> None:
    """Copy every file that git tracks, so that ``import lucid_deploy`` finds the copy when it is first on the path."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    for name in MAPPED:
        (target / "lucid_deploy" / name).symlink_to(Path("..") / name)


def run_tests(folder: Path, tests: str, workers: int, kept: Path, traces: bool) -> int:
    """Run pytest in a copy until the first failure; return its exit status.

    ``kept``: a folder that all runs share, for compiled objects and, if ``traces`` is set, for traces of models.
    """
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"LUCID_TESTS_OBJECTS": str(kept / "objects"), "LUCID_TESTS_OPTIMIZATION": "-O1"}
    environment |= {"LUCID_TESTS_TRACES": str(kept / "traces")} if traces else {}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not compat", "-p", "no:cacheprovider", *tests.split()]
    command += ["-n", str(workers), "--dist", "loadfile"] if workers > 1 else []
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True).returncode


def kill(fault: Fault, whole_suite: bool, kept: Path) -> tuple[str, float]:
    """Apply one fault to a copy of its own and run its tests; return the verdict and the seconds that it took."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        folder = Path(name)
        copy_sources(folder)
        path = folder / fault.file
        source = path.read_text(encoding="utf-8").replace(fault.old, fault.new)
        if path.suffix == ".py":
            compile(source, fault.file, "exec")  # a fault that does not even parse would be killed by anything
        path.write_text(source, encoding="utf-8")
        traces = bool(NOT_IN_EXPORTS.match(fault.file))
        status = run_tests(folder, fault.tests, 1, kept, traces)
        if status == 0 and whole_suite:
            status = run_tests(folder, "tests", 3, kept, traces)
            return ("killed only by the whole suite" if status else "SURVIVED"), time.monotonic() - start
    if status in NOTHING_COLLECTED:
        return "NO TESTS RAN", time.monotonic() - start
    return ("killed" if status else "SURVIVED"), time.monotonic() - start


def main() -> None:
    """Run the faults, two at a time, and say which survive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="words in the names or files of the faults to run; all without one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many run at the same time")
    parser.add_argument("--whole-suite", action="store_true", help="run all tests on faults that survive their own")
    given = parser.parse_args()
    faults = [
        fault
        for fault in read_faults()
        if not given.names or any(word in fault.name or word in fault.file for word in given.names)
    ]
    start, alive = time.monotonic(), []
    with (
        tempfile.TemporaryDirectory(prefix="mutants-") as name,
        concurrent.futures.ThreadPoolExecutor(given.jobs) as pool,
    ):
        kept = Path(name)
        for each in ("objects", "traces"):
            (kept / each).mkdir()
        runs = {pool.submit(kill, fault, given.whole_suite, kept): fault for fault in faults}
        for run in concurrent.futures.as_completed(runs):
            fault, (verdict, seconds) = runs[run], run.result()
            print(f"{verdict:10} {seconds:5.0f} s  {fault.name} ({fault.tests})", flush=True)
            alive += [] if verdict == "killed" else [fault.name]
    minutes = (time.monotonic() - start) / 60
    print(f"{len(faults) - len(alive)} of {len(faults)} faults were killed by their tests in {minutes:.0f} minutes.")
    raise SystemExit(1 if alive else 0)


if __name__ == "__main__":
    main()
