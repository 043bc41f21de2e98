"""The wheel for aarch64, compiled on another processor: what is in it, and its library in an emulator."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lucid_deploy.plugins.hosts.onnxruntime.build import LIBRARY_NAME, ORT_ABI, file_hash
from tests.patience import PATIENCE

COMPILER, EMULATOR, ROOT = "aarch64-linux-gnu-g++", "qemu-aarch64-static", Path(__file__).resolve().parents[2]
AARCH64 = 183  # e_machine in the ELF header
pytestmark = pytest.mark.compat
SCRIPT = ROOT / ".ci" / "build_wheel.py"
ASKS = """
#include <cstdio>
#include <dlfcn.h>
int main(int, char** words) {
    void* library = dlopen(words[1], RTLD_NOW);
    if (!library) return std::puts(dlerror()), 1;
    auto abi = reinterpret_cast<int (*)()>(dlsym(library, "lucidOrtAbi"));
    auto kernels = reinterpret_cast<const char* (*)()>(dlsym(library, "lucidOrtKernels"));
    std::printf("%d %s", abi(), kernels());
}
"""


@pytest.mark.skipif(
    shutil.which(COMPILER) is None or shutil.which(EMULATOR) is None,
    reason="needs Debian's g++-aarch64-linux-gnu and qemu-user-static",
)
def test_the_wheel_for_aarch64_holds_a_library_that_loads_there(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--machine", "aarch64", "--output", tmp_path / "dist"]
    made = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert made.returncode == 0 and made.stdout.count("PASSED") == 2, made.stdout + made.stderr
    [wheel] = (tmp_path / "dist").glob("*.whl")
    assert re.search(r"-py3-none-manylinux_2_\d+_aarch64\.whl$", wheel.name)
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    folder = tmp_path / "site" / "lucid_deploy" / "plugins" / "hosts" / "prebuilt"
    library = folder / LIBRARY_NAME
    assert sorted(path.name for path in folder.iterdir()) == [LIBRARY_NAME, f"{LIBRARY_NAME}.json"]
    assert library.read_bytes()[18] == AARCH64 and file_hash(library) in (folder / f"{LIBRARY_NAME}.json").read_text()
    (tmp_path / "asks.cpp").write_text(ASKS)
    program = tmp_path / "asks"
    subprocess.run([COMPILER, tmp_path / "asks.cpp", "-o", program, "-ldl"], check=True)
    asked = subprocess.run([EMULATOR, "-L", "/usr/aarch64-linux-gnu", program, library], capture_output=True, text=True)
    assert (asked.stdout, asked.returncode) == (f"{ORT_ABI} portable", 0), asked.stderr


def test_without_a_cross_compiler_one_line_says_what_to_install(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--machine", "aarch64", "--output", tmp_path / "dist"]
    made = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=PATIENCE)
    assert made.returncode == 1 and made.stderr.count("\n") == 1 and not (tmp_path / "dist").exists()
    assert "package g++-aarch64-linux-gnu" in made.stderr
