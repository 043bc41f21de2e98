"""Telling that there was too little memory from what libraries raise then, most of which is a plain RuntimeError."""

from __future__ import annotations

import errno

TOO_LITTLE_MEMORY = (
    "There is too little memory for this, or a limit was set on it (ulimit -v, a container). Free some, raise the "
    "limit, or take a smaller model, prompt or batch; lucid-deploy inspect says what an artifact needs."
)
# What PyTorch, onnxruntime, C++, safetensors and the loader of shared libraries write.
_SAID = (
    "can't allocate memory",
    "failed to allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "bad allocation",
    "failed to map segment from shared object",
)


def lacks_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that memory could not be had."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        text = str(error).lower()
        if isinstance(error, MemoryError) or any(words in text for words in _SAID):
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        error = error.__cause__ or error.__context__
    return False
