"""What a request of lm_eval says about generation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.lm_eval_requests import cut_at, read_options
from lucid_deploy.generation.sampling import Sampling

DEFAULT = SimpleNamespace(max_gen_toks=256)


def test_options() -> None:
    assert read_options({}, DEFAULT) == ([], 256, Sampling())
    assert read_options({"until": "x", "max_gen_toks": 3}, DEFAULT) == (["x"], 3, Sampling())
    assert read_options({"until": ["", "y"], "temperature": 1, "do_sample": False}, DEFAULT) == (["y"], 256, Sampling())
    assert read_options({"until": None, "max_gen_toks": None, "max_tokens": "7"}, DEFAULT) == ([], 7, Sampling())


def test_sampling_is_that_of_lm_evals_own_backend() -> None:
    """Without ``do_sample`` the temperature decides, and without ``top_k`` transformers draws from 50 tokens."""

    def sampling(**options: Any) -> Sampling:
        return read_options(options, DEFAULT)[2]

    assert sampling(do_sample=True, temperature=0.5, top_k=4, seed=2) == Sampling(0.5, 4, 1.0, 2)
    for drawn in ({}, {"do_sample": None}, {"do_sample": True}):
        assert sampling(temperature=0.5, **drawn) == Sampling(0.5, 50, 1.0, 0)
    assert sampling(temperature=0.5, top_k=0, top_p=0.9) == Sampling(0.5, 0, 0.9, 0)
    assert sampling(temperature=0.0, do_sample=None, top_k=3) == Sampling()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 4}, "not supported: num_beams"),
        ({"do_sample": True}, r"samples \(do_sample\) at temperature 0: it must be above 0"),
        ({"do_sample": True, "temperature": -1}, "at temperature -1: it must be above 0"),
        ({"do_sample": "yes", "temperature": 1}, "do_sample must be true or false, not 'yes'"),
        ({"temperature": "warm"}, "temperature must be a number, not 'warm'"),
        ({"temperature": 1, "top_p": 0}, "top_p must be above 0"),
        ({"temperature": 1, "top_k": 2.5}, "top_k must be a whole number, not 2.5"),
        ({"max_gen_toks": "many"}, "max_gen_toks must be a whole number, not 'many'"),
        ({"max_gen_toks": True}, "max_gen_toks must be a whole number, not True"),
        ({"until": 7}, "until must be texts that end an answer, not 7"),
        ({"until": ["x", None]}, "until must be texts that end an answer, not None"),
    ],
)
def test_options_that_cannot_be_kept_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LucidError, match=message):
        read_options(options, DEFAULT)


def test_stop_sequences_cut_one_after_the_other() -> None:
    """As lm_eval's ``postprocess_generated_text``, with which the answers of both are compared elsewhere."""
    assert cut_at("The lamp", ["e", "he"]) == "Th"
    assert cut_at("The lamp", ["he", "e"]) == "T"
    assert cut_at("one\n\ntwo", ["\n\n", "\n"]) == "one"
    assert cut_at("none", []) == "none"
