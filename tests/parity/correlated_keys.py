"""Keys that resemble each other, as trained models' do."""

import math

import numpy as np

EPS = 1e-5


def keys(tokens=70, width=16, correlation=0.9, heads=2, seed=0):
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(heads, 1, width))
    return math.sqrt(correlation) * common + math.sqrt(1 - correlation) * rng.normal(size=(heads, tokens, width))
