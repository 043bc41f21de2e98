"""Find the C++ compiler and header folders, and run the compiler."""

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
    """Return the path of the C++ compiler: ``CXX`` if set, else the first of g++, c++, clang++ on the path.

    Raises:
        LucidError: There is none, or ``CXX`` contains arguments.
    """
    variable = os.environ.get("CXX")
    for name in (variable,) if variable else COMPILERS:
        if path := shutil.which(name):
            return path
    if variable and len(words := variable.split()) > 1 and shutil.which(words[0]):
        raise LucidError(f"CXX={variable} contains compiler arguments, which are not supported. Set CXX to a name.")
    tried = f"CXX={variable}" if variable else ", ".join(COMPILERS)
    raise LucidError(f"Building the library needs a C++17 compiler, and none was found ({tried}). Install g++.")


def check_gcc(compiler: str) -> None:
    """Refuse Clang, which defines the macro ``__clang__``.

    Raises:
        LucidError: The compiler is Clang, or cannot be run.
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
    """Run the compiler, and kill its processes if this process is interrupted.

    Args:
        command: The compiler and its arguments, without ``-o``. It runs in the library's folder.
        library: The output file. Its folder also takes the compiler's temporary files; a killed compiler leaves them.

    Raises:
        LucidError: The compiler cannot be run, fails (the message has its output), or writes no library.
    """
    scratch = library.parent.absolute()
    command = [os.path.abspath(command[0]), *command[1:], "-o", library.name]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    try:
        # In its own process group: the compiler starts other processes, which would outlive it if only it were killed.
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=scratch, env=environment, process_group=0
        ) as process:
            try:
                errors = process.communicate()[1].decode("utf-8", "backslashreplace")
            except BaseException:  # Ctrl-C too
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
    except OSError as error:
        raise LucidError(f"The compiler {command[0]} cannot be run: {error}") from error
    if process.returncode != 0:
        reason = errors.strip() or f"The compiler printed nothing and exited with status {process.returncode}."
        raise LucidError(f"The library does not compile. {' '.join(command)}\n{reason}")
    if not library.is_file():
        raise LucidError(f"The compiler {command[0]} succeeded but wrote no library. Install g++, or set CXX to it.")


def find_header(header: str, variable: str, places: Sequence[Path], purpose: str) -> Path:
    """Return the folder of a header.

    Args:
        header: File name of the header.
        variable: Environment variable; if set, only its folder ``include`` is searched.
        places: Folders to search otherwise.
        purpose: Description of the header, for the error message.

    Raises:
        LucidError: The header was not found.
    """
    root = os.environ.get(variable)
    for place in [Path(root) / "include"] if root else places:
        if (place / header).is_file():
            return place
    if root:
        raise LucidError(f"{variable} is {root}, which contains no include/{header}. Correct or unset it.")
    raise LucidError(
        f"Building the plugin needs {purpose} ({header}), which were not found. "
        f"Set {variable}, or run: " + spelled_out('pip install "lucid-deploy[kernels]"')
    )


def system_includes() -> list[Path]:
    """Return the system's header folders."""
    names = ("/usr/include", "/usr/include/x86_64-linux-gnu", "/usr/include/aarch64-linux-gnu", "/usr/local/include")
    return [Path(name) for name in names]


def package_folders(name: str) -> list[Path]:
    """Return the folders of an installed package without importing it; an empty list if it is not installed."""
    spec = importlib.util.find_spec(name)
    return [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
