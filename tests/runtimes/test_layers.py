"""What is common to layers that are run one by one: how tokens are numbered, and the cache before the first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lucid_deploy.artifact import Artifact
from lucid_deploy.runtimes.layers import Layers, LayerStates, NewTokens

Exported = Callable[..., tuple[Path, Artifact]]


class Idle(Layers):
    """Runs nothing."""

    def run(self, *_: Any, **__: Any) -> LayerStates:
        raise NotImplementedError


def test_tokens_are_numbered_behind_the_cached_ones() -> None:
    ids = np.array([[4, 4, 9]])
    first, later = NewTokens.after(ids), NewTokens.after(ids, past=5)
    assert first.positions.tolist() == [[0, 1, 2]] and later.positions.tolist() == [[5, 6, 7]]
    assert (first.mask.shape, later.mask.shape, later.mask.all()) == ((1, 3), (1, 8), True)
    assert first.positions.dtype == np.int64 and later.input_ids is ids


def test_padding_has_no_number() -> None:
    """As transformers numbers them, padding aside, whose number nobody reads."""
    mask = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 0, 1, 0, 1], [0, 0, 0, 0, 0, 1]], dtype=bool)
    found = NewTokens.after(np.full((3, 4), 7), past=2, mask=mask).positions
    wanted = torch.from_numpy(mask).long().cumsum(-1)[:, 2:].numpy() - 1
    assert np.array_equal(found[mask[:, 2:]], wanted[mask[:, 2:]])
    assert (found >= 0).all(), "a negative position reads the rotary table from its end"


def test_before_the_first_token_nothing_is_cached(exported: Exported) -> None:
    config = exported()[1].config
    layers = Idle(config, "float32", "int8")
    past = layers.empty_past(3)
    assert [array.shape for layer in past for array in layer] == [(3, 2, 0, 36)] * 4  # K and Y of two layers
    assert {array.dtype for layer in past for array in layer} == {np.dtype(np.float32)}
    assert [tensor.dtype for tensor in layers.layers[0].cache if tensor.name in ("key", "value")] == ["int8"] * 2
