"""Telling that memory or threads could not be had from what libraries raise then, mostly a plain RuntimeError."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lucid_deploy.errors import LucidError

TOO_LITTLE_MEMORY = (
    "There is too little memory for this, or a limit was set on it (ulimit -v, a container). Free some, raise the "
    "limit, or take a smaller model, prompt or batch; lucid-deploy inspect says what an artifact needs."
)
TOO_FEW_THREADS = (
    "No more threads or processes may be started here: there is a limit on them (ulimit -u, or a container's on its "
    "processes). Raise it; where the command has --threads, 1 needs the fewest."
)
# What PyTorch, numpy, onnxruntime, OpenVINO, C++, safetensors and the loader of shared libraries write.
_SAID = (
    "can't alloc",
    "unable to allocate",
    "failed to allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "bad allocation",
    "failed to map segment from shared object",
)
_SAID_OF_THREADS = ("can't start new thread", "pthread_create failed", "resource temporarily unavailable")


class TooLittleMemory(LucidError):
    """Memory could not be had, whichever library says so in whichever way."""

    def __init__(self) -> None:
        super().__init__(TOO_LITTLE_MEMORY)


@contextmanager
def memory_errors_told() -> Iterator[None]:
    """Raise :class:`TooLittleMemory` in the place of what says that memory could not be had; other errors pass.

    Raises:
        TooLittleMemory: See there.
    """
    try:
        yield
    except Exception as error:
        if not lacks_memory(error):
            raise
        raise TooLittleMemory from error


def limit_met(error: BaseException) -> str | None:
    """Return what to say of an error that came of too little memory or too few threads; None: of neither."""
    if lacks_memory(error):
        return TOO_LITTLE_MEMORY
    said = (str(each).lower() for each in _with_causes(error))
    return TOO_FEW_THREADS if any(words in text for text in said for words in _SAID_OF_THREADS) else None


def lacks_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that memory could not be had.

    Some libraries do not say why they failed (``SystemError``, protobuf's errors). That is taken for it in a process
    that has come near to a limit on its address space.
    """
    for each in _with_causes(error):
        text = str(each).lower()
        if isinstance(each, MemoryError) or any(words in text for words in _SAID):
            return True
        if isinstance(each, OSError) and each.errno == errno.ENOMEM:
            return True
        if _says_nothing(each) and _is_near_its_limit():
            return True
    return False


def leave_out_memory_at_exit() -> None:
    """Write no traceback of what finds no memory while the process ends: PyTorch imports modules there, for a log."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda lost: None if lacks_memory(lost.exc_value) else hook(lost)


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _says_nothing(error: BaseException) -> bool:
    return isinstance(error, SystemError) or type(error).__module__.startswith("google.protobuf")


def _is_near_its_limit() -> bool:
    """Whether the process had three quarters of what ``ulimit -v`` allows it; False where that is not to be known.

    Not all of it: what was asked for and refused is in no count, and malloc asks for 128 MiB for the arena of a thread.
    """
    try:
        import resource

        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            peak = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmPeak"))
    except (ModuleNotFoundError, FileNotFoundError, PermissionError, StopIteration):  # Windows, macOS, no /proc
        return False
    except (ImportError, OSError, MemoryError):  # not even this module finds room
        return True
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return limit != resource.RLIM_INFINITY and peak > 0.75 * limit
