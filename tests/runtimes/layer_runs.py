"""Layers one by one against the session of the same model: what both runtimes' layers must do."""

from __future__ import annotations

from typing import Any

import numpy as np

from lucid_deploy.runtimes import Session
from lucid_deploy.runtimes.layers import Layers, NewTokens

IDS = np.random.default_rng(3).integers(0, 97, (2, 24))
IDS[1, 5:17] = 11  # one token repeated
MASK = np.ones((2, 24), dtype=bool)
MASK[0, :7] = False


def same_as_the_session(layers: Layers, session: Session[Any]) -> None:
    """Prefill with padding, then a decoding step: logits and new rows are the session's."""
    cache = session.empty_cache(2)
    logits = session.prefill(IDS[:, :-1], cache, MASK[:, :-1])
    states = layers.run(NewTokens.after(IDS[:, :-1], mask=MASK[:, :-1]), layers.empty_past(2))
    np.testing.assert_allclose(states.logits, logits, atol=1e-4)
    past = session.layer_arrays(cache)
    for named, arrays in zip(states.cached, past, strict=True):
        for found, wanted in zip(named.values(), arrays, strict=True):
            np.testing.assert_allclose(found[1], wanted[1], atol=1e-4)
            np.testing.assert_allclose(found[0, :, 7:], wanted[0, :, 7:], atol=1e-4)
    logits = session.decode(IDS[:, -1:], cache)
    step = layers.run(NewTokens.after(IDS[:, -1:], 23, MASK), past, decode=True)
    np.testing.assert_allclose(step.logits, logits, atol=1e-4)
    for named, arrays in zip(step.cached, session.layer_arrays(cache), strict=True):
        for found, wanted in zip(named.values(), arrays, strict=True):
            assert found.shape[2] == 1
            np.testing.assert_allclose(found, wanted[:, :, -1:], atol=1e-4)


def given_residuals_are_read(layers: Layers) -> None:
    """Its own residuals change nothing; another one changes its reader's output, and no other layer's."""
    tokens = NewTokens.after(IDS)
    own = layers.run(tokens, layers.empty_past(2))
    again = layers.run(tokens, layers.empty_past(2), own.residuals)
    for found, wanted in zip([*again.residuals, again.logits], [*own.residuals, own.logits], strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    other = [residual.copy() for residual in own.residuals]
    other[0] *= 1.1
    changed = layers.run(tokens, layers.empty_past(2), other)
    assert np.abs(changed.residuals[1] - own.residuals[1]).max() > 1e-2
    np.testing.assert_allclose(changed.residuals[2], own.residuals[2], atol=1e-4)
    np.testing.assert_allclose(changed.logits, own.logits, atol=1e-4)
    other = [*own.residuals[:2], own.residuals[2][:, ::-1]]
    assert np.abs(layers.run(tokens, layers.empty_past(2), other).logits - own.logits).max() > 1e-2


def solves_start_from_v(layers: Layers) -> None:
    """What a LUCID layer's solve is given is V: it caches Y, and both are equal where nothing came before."""
    states = layers.run(NewTokens.after(IDS), layers.empty_past(2))
    for given, cached in zip(states.given, states.cached, strict=True):
        assert given is not None and given.shape == cached["value"].shape
        np.testing.assert_allclose(given[:, :, 0], cached["value"][:, :, 0], atol=1e-4)
        assert np.abs(given - cached["value"]).max() > 1e-2
