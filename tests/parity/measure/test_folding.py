"""Scales of inputs that cancel change nothing; all others are found, also those that only keys show."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_deploy.errors import CheckFailed
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.parity.measure.folding import check_folding
from tests.conftest import write_checkpoint

LAYER = "model.layers.0."
QKV = [f"{LAYER}self_attn.{part}_proj.weight" for part in "qkv"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(write_checkpoint(tmp_path_factory.mktemp("folding") / "c", tie_word_embeddings=False))


def scales_of(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Those of a norm and what it gives to, and of the final norm and the head."""
    hidden = checkpoint.config.hidden_size
    first, last = (np.random.default_rng(i).uniform(0.3, 3, hidden).astype(np.float32) for i in range(2))
    found = {f"{LAYER}input_layernorm.weight.outputs": first, "model.norm.weight.outputs": last}
    return found | {f"{name}.inputs": first for name in QKV} | {"lm_head.weight.inputs": last}


def test_scales_that_cancel(checkpoint: Checkpoint) -> None:
    check_folding(scales_of(checkpoint), checkpoint)


@pytest.mark.parametrize(
    ("missing", "changed"),
    [
        (QKV[0], "the logits"),
        (QKV[1], "the logits|the keys of layer 0"),
        ("lm_head.weight", "the logits"),
    ],
)
def test_scales_that_one_reader_lacks(missing: str, changed: str, checkpoint: Checkpoint) -> None:
    scales = scales_of(checkpoint)
    del scales[f"{missing}.inputs"]
    with pytest.raises(CheckFailed, match=f"do not cancel: without any rounding they change ({changed}) by "):
        check_folding(scales, checkpoint)


@pytest.mark.parametrize("off", [1.0001, 3.0])
def test_keys_of_another_size(off: float, checkpoint: Checkpoint) -> None:
    scales = scales_of(checkpoint)
    rows = len(checkpoint.tensor(QKV[1]))
    with pytest.raises(CheckFailed, match="do not cancel"):
        check_folding({**scales, f"{QKV[1]}.outputs": np.full(rows, off, np.float32)}, checkpoint)
