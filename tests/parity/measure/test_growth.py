"""Whether an error grows along the sequence."""

import numpy as np
import pytest

from lucid_deploy.parity.measure.growth import growth


def test_growth_finds_the_exponent():
    positions = np.arange(1, 301)
    trend = growth(1e-6 * positions**0.5)
    assert trend.exponent == pytest.approx(0.5)
    assert trend.ratio > 2 and trend.grows
    flat = growth(1e-6 * np.random.default_rng(0).uniform(0.5, 1.5, size=300))
    assert abs(flat.exponent) < 0.1 and not flat.grows


@pytest.mark.parametrize("errors", [np.ones(7), np.zeros(100), np.full(100, np.nan)])
def test_no_growth_without_enough_errors(errors):
    assert growth(errors) is None


def test_no_growth_over_a_short_stretch_far_away():
    assert growth(np.linspace(1, 2, 33), start=299) is None
