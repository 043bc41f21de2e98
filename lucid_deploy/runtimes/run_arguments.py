"""What a run of a session is given beside token ids, checked before anything runs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lucid_deploy.argument_types import check_arguments
from lucid_deploy.errors import LucidError


def checked_mask(mask: NDArray[Any] | None, input_ids: NDArray[Any]) -> NDArray[Any]:
    """Return which of the new tokens are tokens, bool and of their shape; None: all.

    Raises:
        LucidError: The shapes differ.
    """
    if mask is None:
        return np.ones(input_ids.shape, dtype=bool)
    mask = np.asarray(mask, dtype=bool)
    if mask.shape != input_ids.shape:
        raise LucidError(f"The mask is {mask.shape}, the token ids are {input_ids.shape}.")
    return mask


def checked_chunk(chunk: Any) -> int | None:
    """Return how many tokens of a prompt run at once; None: all.

    Raises:
        LucidError: It is no whole number, or below 1.
    """
    checked: int | None = check_arguments({"chunk": chunk}, {"chunk": "int | None"})["chunk"]
    if checked is not None and checked < 1:
        raise LucidError(f"A prefill chunk must hold at least one token, not {checked}.")
    return checked
