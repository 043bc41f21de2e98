"""What a run of a runtime must give: a runtime may be anyone's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lucid_deploy.errors import CheckFailed


def checked_result(found: Any, expected: tuple[int, int, int], layers: int, run: str) -> tuple[NDArray[Any], Any]:
    """Return logits and layers that a run gave.

    Args:
        found: What it gave.
        expected: Shape of the logits, ``(B, tokens, vocab)``.
        layers: Of the model.
        run: Names it in errors.

    Raises:
        CheckFailed: They are not two, not such an array, or not as many layers.
    """
    if not isinstance(found, tuple) or len(found) != 2:
        raise CheckFailed(f"{run} gave {type(found).__name__}, not logits and layers.")
    logits, cache = found
    if not isinstance(logits, np.ndarray) or logits.shape != expected:
        what = f"of shape {logits.shape}" if isinstance(logits, np.ndarray) else f"that are {type(logits).__name__}"
        last = ", those of each row's last token" if expected[1] == 1 else ""
        raise CheckFailed(f"{run} gave logits {what}, not a numpy array of shape {expected}{last}.")
    if not isinstance(cache, Sequence) or len(cache) != layers:
        what = f"{len(cache)} layers" if isinstance(cache, Sequence) else type(cache).__name__
        raise CheckFailed(f"{run} gave a cache of {what}, not of the model's {layers} layers.")
    return logits, cache
