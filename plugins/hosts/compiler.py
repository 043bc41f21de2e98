"""The C++ compiler, and where headers are looked for."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lucid_deploy.errors import LucidError, spelled_out

COMPILERS = ("g++", "c++", "clang++")


def find_compiler() -> str:
    """Return the C++ compiler: ``CXX``, else the first of g++, c++, clang++ on the path.

    Raises:
        LucidError: There is none, or ``CXX`` has arguments too.
    """
    chosen = os.environ.get("CXX")
    for name in (chosen,) if chosen else COMPILERS:
        if found := shutil.which(name):
            return found
    if chosen and len(words := chosen.split()) > 1 and shutil.which(words[0]):
        raise LucidError(f"CXX={chosen} has words behind the compiler's name, which are not taken. Set CXX to a name.")
    looked = f"CXX={chosen}" if chosen else ", ".join(COMPILERS)
    raise LucidError(f"Building the plugin needs a C++17 compiler and none was found ({looked}). Install g++.")


def check_gcc(compiler: str) -> None:
    """Check that a compiler is GCC, or at least not Clang, which says by a macro that it is not.

    Raises:
        LucidError: It is Clang, or cannot be run.
    """
    try:
        command = [compiler, "-dM", "-E", "-x", "c++", os.devnull]
        macros = subprocess.run(command, capture_output=True, text=True).stdout
    except OSError as error:
        raise LucidError(f"The compiler {compiler} cannot be run: {error}") from error
    if "__clang__" in macros:
        raise LucidError(
            f"The library of kernels for onnxruntime compiles with GCC only, and {compiler} is Clang. Install g++, "
            "and set CXX=g++ if CXX is set."
        )


def run_compiler(command: Sequence[str], library: Path) -> None:
    """Run the compiler; if a signal ends the command meanwhile, its processes end with it.

    Args:
        command: The compiler and its arguments, without ``-o``. It runs in the library's folder.
        library: What it makes. Its folder takes temporary files, which the compiler leaves if it is killed.

    Raises:
        LucidError: It cannot be run, fails, or writes no library; the message has its output.
    """
    scratch = library.parent.absolute()
    command = [os.path.abspath(command[0]), *command[1:], "-o", library.name]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    try:
        # A group of their own: the compiler starts others, which do not end with it.
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=scratch, env=environment, process_group=0
        ) as process:
            try:
                said = process.communicate()[1].decode("utf-8", "backslashreplace")
            except BaseException:  # Ctrl-C too
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
    except OSError as error:
        raise LucidError(f"The compiler {command[0]} cannot be run: {error}") from error
    if process.returncode != 0:
        why = said.strip() or f"The compiler printed nothing and ended with status {process.returncode}."
        raise LucidError(f"The plugin library does not compile. {' '.join(command)}\n{why}")
    if not library.is_file():
        raise LucidError(f"The compiler {command[0]} succeeded but wrote no library. Install g++, or set CXX to it.")


def find_header(header: str, variable: str, places: Sequence[Path], purpose: str) -> Path:
    """Return the folder of a header.

    Args:
        header: Its name.
        variable: An environment variable; where it is set, the header is looked for below it and nowhere else.
        places: Folders to look into.
        purpose: What the header is, for the message.

    Raises:
        LucidError: It is in none of them.
    """
    root = os.environ.get(variable)
    for place in [Path(root) / "include"] if root else places:
        if (place / header).is_file():
            return place
    if root:
        raise LucidError(f"{variable} is {root}, where there is no include/{header}. Correct or unset it.")
    raise LucidError(
        f"Building the plugin needs {purpose} ({header}), which were not found. "
        f"Set {variable}, or run: " + spelled_out('pip install "lucid-deploy[kernels]"')
    )


def system_includes() -> list[Path]:
    """Return the system's folders of headers."""
    names = ("/usr/include", "/usr/include/x86_64-linux-gnu", "/usr/include/aarch64-linux-gnu", "/usr/local/include")
    return [Path(name) for name in names]


def package_folders(name: str) -> list[Path]:
    """Return the folders of an installed package without importing it; none when it is not installed."""
    spec = importlib.util.find_spec(name)
    return [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
