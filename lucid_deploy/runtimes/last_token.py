"""Pick each row's last token, where a run gives the logits of all of them.

The PyTorch model does the same with hidden states, before its head: :func:`lucid_deploy.model.lucid.last_token`.
"""

from __future__ import annotations

import numpy as np

from lucid_deploy.runtimes.session import Array


def last_token_logits(logits: Array, mask: Array) -> Array:
    """Return the logits of each row's last token that is not padding.

    Args:
        logits: ``(B, N, vocab)`` of the N new tokens, or ``(B, 1, vocab)`` where the run has picked already.
        mask: Bool ``(B, P + N)``, past tokens included; False at padding.

    Returns:
        ``(B, 1, vocab)``; that of a row of nothing but padding means nothing.
    """
    n = logits.shape[1]
    if n == 1:
        return logits
    index = (mask[:, mask.shape[1] - n :] * np.arange(n)).argmax(axis=1)  # (B,)
    return np.take_along_axis(logits, index[:, None, None], axis=1)
