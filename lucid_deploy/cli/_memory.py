"""Telling that there was too little memory from what libraries raise then, most of which is a plain RuntimeError."""

from __future__ import annotations

import errno

TOO_LITTLE_MEMORY = (
    "There is too little memory for this, or a limit was set on it (ulimit -v, a container). Free some, raise the "
    "limit, or take a smaller model, prompt or batch; lucid-deploy inspect says what an artifact needs."
)
# What PyTorch, numpy, onnxruntime, C++, safetensors and the loader of shared libraries write.
_SAID = (
    "can't allocate memory",
    "unable to allocate",
    "failed to allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "bad allocation",
    "failed to map segment from shared object",
)


def lacks_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that memory could not be had.

    Some libraries do not say why they failed (``SystemError``, protobuf's errors). That is taken for it in a process
    that has come near to a limit on its address space.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        text = str(error).lower()
        if isinstance(error, MemoryError) or any(words in text for words in _SAID):
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        if _says_nothing(error) and _is_near_its_limit():
            return True
        error = error.__cause__ or error.__context__
    return False


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
    except (ImportError, OSError, StopIteration):
        return False
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return limit != resource.RLIM_INFINITY and peak > 0.75 * limit
