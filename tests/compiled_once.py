"""A pytest plugin: g++ on this run's path compiles a shared library once, whoever asks for the same one again.

The library of CPU kernels takes it 10 seconds, and a page of the docs, the tests of a wheel and those of the kernels
build it, each in its own way. The same compiler, arguments and source behind the preprocessor give the same library.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

COMPILER = "g++"
PROGRAM = """#!{python} -IS
import fcntl, hashlib, os, shutil, subprocess, sys
real, kept, arguments = {real!r}, {kept!r}, sys.argv[1:]
if "-shared" not in arguments or "-o" not in arguments:
    os.execv(real, [real, *arguments])
at = arguments.index("-o")
output, others = arguments[at + 1], arguments[:at] + arguments[at + 2 :]
source = subprocess.run([real, "-E", "-P", *others], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
names = [one for one in others if not one.startswith(("-I", "/"))]  # where sources lie is in what they say
key = hashlib.sha256(repr(names).encode() + source.stdout).hexdigest()
with open(os.path.join(kept, key + ".lock"), "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    library = os.path.join(kept, key)
    if source.returncode != 0 or not os.path.exists(library):
        result = subprocess.run([real, *arguments])
        if result.returncode != 0 or source.returncode != 0:
            sys.exit(result.returncode)
        shutil.copy(output, library + ".part")
        os.replace(library + ".part", library)
    else:
        shutil.copy(library, output)
"""


def pytest_configure(config: pytest.Config) -> None:
    real = shutil.which(COMPILER)
    if hasattr(config, "workerinput") or real is None:  # the process that started this worker has done it
        return
    folder = tempfile.TemporaryDirectory(prefix="lucid-", ignore_cleanup_errors=True)
    patch = pytest.MonkeyPatch()
    config.add_cleanup(folder.cleanup)
    config.add_cleanup(patch.undo)
    install(Path(folder.name), real)
    patch.setenv("PATH", folder.name, prepend=os.pathsep)


def install(folder: Path, real: str) -> Path:
    """Write the program into a folder, which also keeps what it has compiled; return it."""
    kept = folder / "kept"
    kept.mkdir()
    program = folder / COMPILER
    program.write_text(PROGRAM.format(python=sys.executable, real=real, kept=str(kept)))
    program.chmod(0o755)
    return program
