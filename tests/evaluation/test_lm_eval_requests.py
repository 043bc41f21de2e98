"""What a request of lm_eval says about generation."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.lm_eval_requests import read_options
from lucid_deploy.generation.sampling import Sampling

DEFAULT = SimpleNamespace(max_gen_toks=256)


def test_options() -> None:
    assert read_options({}, DEFAULT) == ([], 256, Sampling())
    assert read_options({"until": "x", "max_gen_toks": 3}, DEFAULT) == (["x"], 3, Sampling())
    assert read_options({"until": ["", "y"], "temperature": 1, "do_sample": False}, DEFAULT) == (["y"], 256, Sampling())
    assert read_options({"do_sample": True, "temperature": 0.5, "top_k": 4, "seed": 2}, DEFAULT)[2] == Sampling(
        0.5, 4, 1.0, 2
    )
    with pytest.raises(LucidError, match="not supported: num_beams"):
        read_options({"num_beams": 4}, DEFAULT)
