"""Build an sdist and a platform wheel with compiled libraries inside: ``python .ci/build_wheel.py [--cpu-only]``.

The wheel is made from a copy of the sources with the libraries in ``plugins/hosts/prebuilt``. They link the C++ runtime
statically, so that they need glibc only; auditwheel reads which version, and the wheel is tagged so.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("lucid_deploy", "export", "plugins", "conformance")
FILES = ("pyproject.toml", "README.md", "LICENSE")
STATIC = ("-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL", "-Wl,--gc-sections")
TAG = re.compile(r'"(manylinux_\d+_\d+_\w+)"')
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


def build_libraries(folder: Path, cpu_only: bool, archs: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
    """Compile the libraries into a folder, with the C++ runtime inside."""
    from lucid_deploy.plugins.hosts.compiler import find_compiler
    from lucid_deploy.plugins.hosts.onnxruntime import build as onnxruntime
    from lucid_deploy.plugins.hosts.tensorrt import build as tensorrt
    from lucid_deploy.runtimes.tensorrt.plugin_library import build_library

    folder.mkdir(parents=True)
    linked = folder.parent / "linked-statically"  # a compiler that takes two more words
    linked.write_text(f'#!/bin/sh\nexec "{find_compiler()}" "$@" {" ".join(STATIC)}\n')
    linked.chmod(0o755)
    os.environ["CXX"] = str(linked)
    onnxruntime.build_ort_library(folder / onnxruntime.LIBRARY_NAME)
    if not cpu_only:
        shown = -1

        def progress(done: int, total: int, name: str) -> None:
            nonlocal shown
            if done * 20 // max(total, 1) != shown:
                shown = done * 20 // max(total, 1)
                print(f"Kernels for GPUs: {done} of {total}", flush=True)

        build_library(folder / tensorrt.LIBRARY_NAME, archs, dtypes, progress)
    linked.unlink()
    for library in folder.glob("*.so"):
        subprocess.run(["strip", "--strip-unneeded", library], check=True)
    record = folder / f"{onnxruntime.LIBRARY_NAME}.json"
    facts = json.loads(record.read_text())
    facts["sha256"] = onnxruntime.file_hash(folder / onnxruntime.LIBRARY_NAME)
    record.write_text(json.dumps(facts) + "\n")


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
    given = parser.parse_args()
    output, work = given.output.resolve(), given.output.resolve() / "work"
    output.mkdir(parents=True, exist_ok=True)
    copy_sources(work / "source")
    archive = build(work / "source", output, "sdist")
    copy_sources(work / "source")
    archs = tuple(int(number) for number in given.arch.split(",") if number)
    build_libraries(work / "source" / "plugins" / "hosts" / "prebuilt", given.cpu_only, archs, tuple(given.dtype))
    setup = work / "source" / "setup.py"
    setup.write_text(SETUP.format(platform=f"linux_{os.uname().machine}"))
    tag = platform_tag(build(work / "source", work, "wheel"))
    setup.write_text(SETUP.format(platform=tag))
    shutil.rmtree(work / "source" / "build", ignore_errors=True)
    wheel = build(work / "source", output, "wheel")
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", wheel, archive], check=True)
    shutil.rmtree(work)
    for path in (archive, wheel):
        print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
