"""A pytest plugin: puts a g++ into PATH that compiles each source of a library once per run and reuses the object.

Compiling the library of CPU kernels takes a minute, TensorRT's plugin 5 seconds. A page of the docs and the tests of
the wheel, the commands and the kernels build them, each in its own way; often only one of five sources differs. An
object is reused if the compiler options and the preprocessed source are the same. Libraries are linked each time.
Seeded faults are compiled with -O1, in two thirds of the time.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

COMPILER = "g++"
KEPT = "LUCID_TESTS_OBJECTS"  # an environment variable: a folder of objects that several runs share
LEVEL = "LUCID_TESTS_OPTIMIZATION"  # an environment variable: the option that replaces -O3
PROGRAM = """#!{python} -IS
import fcntl, hashlib, os, shutil, subprocess, sys
real, kept, arguments = {real!r}, {kept!r}, sys.argv[1:]
sources = [one for one in arguments if one.endswith(".cpp")]
links, compiles = "-shared" in arguments, "-c" in arguments and len(sources) == 1
if "-o" not in arguments or not sources or not (links or compiles):
    os.execv(real, [real, *arguments])
at = arguments.index("-o")
options = [one for one in arguments[:at] + arguments[at + 2 :] if one not in ("-c", "-shared", *sources)]
options = [one for one in options if not one.startswith(("-l", "-L", "-Wl,", "-static-"))]  # for linking only
options = [os.environ.get({level!r}, one) if one == "-O3" else one for one in options]
names = [one for one in options if not one.startswith(("-D", "-I", "-isystem", "/"))]  # their effect is in the source
objects = []
for place, source in enumerate(sources):
    said = subprocess.run([real, "-E", "-P", *options, source], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    key = hashlib.sha256(repr(names).encode() + said.stdout).hexdigest()
    if b".incbin" in said.stdout:  # the assembler reads another file
        key = "%s-%d-%d" % (key, os.getpid(), place)
    objects.append(os.path.join(kept, key + ".o"))
    with open(objects[-1] + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if said.returncode == 0 and os.path.exists(objects[-1]):
            continue
        part = objects[-1] + ".part"
        if status := subprocess.run([real, "-c", *options, source, "-o", part]).returncode:
            sys.exit(status)
        os.replace(part, objects[-1])
if compiles:
    shutil.copy(objects[0], arguments[at + 1])
else:
    places = iter(objects)
    os.execv(real, [real, *(next(places) if one in sources else one for one in arguments)])
"""


def pytest_configure(config: pytest.Config) -> None:
    real = shutil.which(COMPILER)
    if hasattr(config, "workerinput") or real is None:  # pytest's main process has done this, or there is no g++
        return
    folder = tempfile.TemporaryDirectory(prefix="lucid-", ignore_cleanup_errors=True)
    patch = pytest.MonkeyPatch()
    config.add_cleanup(folder.cleanup)
    config.add_cleanup(patch.undo)
    install(Path(folder.name), real)
    patch.setenv("PATH", folder.name, prepend=os.pathsep)


def install(folder: Path, real: str) -> Path:
    """Write the program into a folder, which also keeps compiled objects; return the program's path."""
    kept = Path(os.environ.get(KEPT) or folder / "kept")
    kept.mkdir(exist_ok=True)
    program = folder / COMPILER
    program.write_text(PROGRAM.format(python=sys.executable, real=real, kept=str(kept), level=LEVEL))
    program.chmod(0o755)
    return program
