"""Layers one by one against the session of the same model: what both runtimes' layers must do."""

from __future__ import annotations

import numpy as np

from lucid_deploy.runtimes.layers import Layers, NewTokens

IDS = np.random.default_rng(3).integers(0, 97, (2, 24))
IDS[1, 5:17] = 11  # one token repeated


def solves_start_from_v(layers: Layers) -> None:
    """What a LUCID layer's solve is given is V: it caches Y, and both are equal where nothing came before."""
    states = layers.run(NewTokens.after(IDS), layers.empty_past(2))
    for given, cached in zip(states.given, states.cached, strict=True):
        assert given is not None and given.shape == cached["value"].shape
        np.testing.assert_allclose(given[:, :, 0], cached["value"][:, :, 0], atol=1e-4)
        assert np.abs(given - cached["value"]).max() > 1e-2
