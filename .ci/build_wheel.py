"""Build an sdist and a platform wheel with compiled libraries inside: ``python .ci/build_wheel.py [--cpu-only]``.

The wheel is made from a copy of the sources with the libraries in ``plugins/hosts/prebuilt``. They link the C++ runtime
statically, so that they need glibc only; auditwheel reads which version, and the wheel is tagged so.

All GPU kernels take about half an hour of a core. Each is kept when it is compiled, in the user's cache folder, so a
build that was stopped goes on where it was. ``--machine aarch64`` compiles the CPU kernels for another processor.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("lucid_deploy", "export", "plugins", "conformance")
FILES = ("pyproject.toml", "README.md", "LICENSE")
STATIC = ("-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL", "-Wl,--gc-sections")
TAG = re.compile(r'"(manylinux_\d+_\d+_\w+)"')
MACHINES = ("x86_64", "aarch64")
SETUP = """
from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.dist import Distribution


class Platform(bdist_wheel):
    def get_tag(self):
        return "py3", "none", {platform!r}


class WithLibraries(Distribution):
    def has_ext_modules(self):
        return True


setup(distclass=WithLibraries, cmdclass={{"bdist_wheel": Platform}})
"""


def copy_sources(target: Path) -> None:
    """Copy what a wheel is made of; building leaves files behind."""
    shutil.rmtree(target, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "prebuilt")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, target / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, target)


def tools_for(machine: str) -> tuple[str, str]:
    """Return the C++ compiler and ``strip`` for a processor: this machine's, or Debian's for another one.

    Raises:
        SystemExit: There is no cross compiler.
    """
    from lucid_deploy.plugins.hosts.compiler import find_compiler

    if machine == os.uname().machine:
        return find_compiler(), "strip"
    compiler, strip = (f"{machine}-linux-gnu-{name}" for name in ("g++", "strip"))
    if shutil.which(compiler) is None:
        raise SystemExit(
            f"There is no compiler for {machine}: {compiler} is not on the path. On Debian and Ubuntu it is in the "
            f"package g++-{machine.replace('_', '-')}-linux-gnu."
        )
    return compiler, strip


def build_libraries(folder: Path, given: argparse.Namespace) -> None:
    """Compile the libraries into a folder, with the C++ runtime inside."""
    from lucid_deploy.plugins.hosts.onnxruntime import build as onnxruntime
    from lucid_deploy.plugins.hosts.tensorrt import build as tensorrt
    from lucid_deploy.runtimes.tensorrt.plugin_library import build_library

    folder.mkdir(parents=True)
    compiler, strip = tools_for(given.machine)
    linked = folder.parent / "linked-statically"  # a compiler that takes two more words
    linked.write_text(f'#!/bin/sh\nexec "{compiler}" "$@" {" ".join(STATIC)}\n')
    linked.chmod(0o755)
    os.environ["CXX"] = str(linked)
    onnxruntime.build_ort_library(folder / onnxruntime.LIBRARY_NAME)
    if not given.cpu_only:
        archs = tuple(int(number) for number in given.arch.split(",") if number)
        dtypes = tuple(given.dtype)
        build_library(folder / tensorrt.LIBRARY_NAME, archs, dtypes, say_progress(), jobs=given.jobs)
    linked.unlink()
    for library in folder.glob("*.so"):
        subprocess.run([strip, "--strip-unneeded", library], check=True)
    record = folder / f"{onnxruntime.LIBRARY_NAME}.json"
    facts = json.loads(record.read_text())
    facts["sha256"] = onnxruntime.file_hash(folder / onnxruntime.LIBRARY_NAME)
    record.write_text(json.dumps(facts) + "\n")


def say_progress() -> Callable[[int, int, str], None]:
    """Return what prints a line for every twentieth of the GPU kernels, with the time that is left at this pace."""
    begun, kept, shown = time.monotonic(), 0, -1

    def progress(done: int, total: int, name: str) -> None:
        nonlocal kept, shown
        if not name:
            kept = done  # compiled by an earlier build
        if done * 20 // max(total, 1) == shown:
            return
        shown = done * 20 // max(total, 1)
        left = (time.monotonic() - begun) / (done - kept) * (total - done) if done > kept else None
        more = f" ({kept} from an earlier build)" if kept else ""
        more += "" if left is None or done == total else f", about {left / 60:.0f} minutes left"
        print(f"Kernels for GPUs: {done} of {total}{more}", flush=True)

    return progress


def build(source: Path, output: Path, kind: str) -> Path:
    """Run setuptools on the copy; return the file that it made."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(output)!r}))"
    made = subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True, text=True)
    return output / made.stdout.splitlines()[-1]


def platform_tag(wheel: Path) -> str:
    """Return the tag that auditwheel finds the wheel to be consistent with.

    Raises:
        SystemExit: It needs libraries from outside, or fits no tag.
    """
    said = subprocess.run([sys.executable, "-m", "auditwheel", "show", wheel], capture_output=True, text=True)
    text = " ".join((said.stdout + said.stderr).split())
    found = TAG.search(text)
    if found is None:
        raise SystemExit(f"auditwheel finds no manylinux tag for {wheel.name}: {text}")
    return found[1]


def main() -> None:
    """Build, check, and say the sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    parser.add_argument("--cpu-only", action="store_true", help="leave the TensorRT plugin out")
    parser.add_argument("--arch", default="", help="compute capabilities of the plugin's kernels, such as 86,90")
    parser.add_argument("--dtype", action="append", default=[], help="types of the plugin's kernels")
    parser.add_argument("--jobs", type=int, default=2, help="GPU kernels that are compiled at the same time")
    parser.add_argument("--machine", choices=MACHINES, default=os.uname().machine, help="processor; another: CPU only")
    given = parser.parse_args()
    given.cpu_only |= given.machine != os.uname().machine  # TensorRT's headers and kernels are for x86-64
    tools_for(given.machine)
    output, work = given.output.resolve(), given.output.resolve() / "work"
    output.mkdir(parents=True, exist_ok=True)
    copy_sources(work / "source")
    archive = build(work / "source", output, "sdist")
    copy_sources(work / "source")
    build_libraries(work / "source" / "plugins" / "hosts" / "prebuilt", given)
    setup = work / "source" / "setup.py"
    setup.write_text(SETUP.format(platform=f"linux_{given.machine}"))
    tag = platform_tag(build(work / "source", work, "wheel"))
    setup.write_text(SETUP.format(platform=tag))
    shutil.rmtree(work / "source" / "build", ignore_errors=True)
    wheel = build(work / "source", output, "wheel")
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", wheel, archive], check=True)
    shutil.rmtree(work)
    say_sizes(wheel)
    for path in (archive, wheel):
        print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


def say_sizes(wheel: Path) -> None:
    """Print what the libraries take in the wheel."""
    with zipfile.ZipFile(wheel) as opened:
        for each in opened.infolist():
            if each.filename.endswith(".so"):
                sizes = f"{each.compress_size / 2**20:.1f} MiB in the wheel, {each.file_size / 2**20:.1f} unpacked"
                print(f"{Path(each.filename).name}: {sizes}")


if __name__ == "__main__":
    main()
