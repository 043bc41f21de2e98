"""What no runtime may give is refused, with what it gave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import CheckFailed
from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.runtimes.torch.session import TorchSession

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits, layers: None, "gave NoneType, not logits and layers"),
        (lambda logits, layers: (logits[:, 0], layers), r"of shape \(2, 97\), not \(2, 1, 97\)"),
        (
            lambda logits, layers: (logits[..., 1:], layers),
            r"of shape \(2, 1, 96\), not \(2, 1, 97\)",
        ),
        (lambda logits, layers: (logits.repeat(4, 1), layers), r"of shape \(2, 4, 97\), not \(2, 1, 97\)"),
        (lambda logits, layers: (torch.tensor(logits), layers), "logits that are Tensor, not a numpy array"),
        (lambda logits, layers: (logits, layers[1:]), "gave a cache of 1 layers, not of the model's 2 layers"),
        (lambda logits, layers: (logits, None), "gave a cache of NoneType, not of the model's 2 layers"),
    ],
)
def test_results_that_no_runtime_may_give_are_refused(
    exported: Exported, change: Callable[..., Any], message: str
) -> None:
    """Sampling would take the last of several tokens' logits, at padding too, and decode from half a cache."""

    class Wrong(TorchSession):
        def _run(self, *given: Any) -> Any:
            return change(*super()._run(*given))

    session = Wrong(load_model(exported()[0], torch.float32))
    with pytest.raises(CheckFailed, match=f"prefill of runtime torch .*{message}"):
        session.prefill(np.full((2, 5), 7), session.empty_cache(2))
