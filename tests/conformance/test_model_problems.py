"""Whole models' cases: what is in them, and a cache that an exact prefill made."""

from __future__ import annotations

import numpy as np

from lucid_deploy.conformance.model_problems import MODEL_PROBLEMS, model_inputs

BY_NAME = {each.name: each for each in MODEL_PROBLEMS}


def test_what_implementations_get_wrong_has_a_case() -> None:
    assert {each.dtype for each in MODEL_PROBLEMS} == {"float32", "float16", "bfloat16"}
    assert any(each.padded and each.batch > 1 and each.past for each in MODEL_PROBLEMS)
    assert any(each.model.width % 2 for each in MODEL_PROBLEMS) and any(each.words < 5 for each in MODEL_PROBLEMS)
    assert any(each.past == 0 and each.new == 1 for each in MODEL_PROBLEMS)
    assert {each.model.groups for each in MODEL_PROBLEMS} == {1, 2}


def test_a_buffer_is_the_cache_with_other_numbers_behind_it() -> None:
    problem = BY_NAME["decode_static"]
    inputs = model_inputs(problem, problem.model.weights())
    rows = inputs["past_key_values.0.key"]
    assert rows.shape[2] == problem.room and np.abs(rows[:, :, problem.past :]).min() > 0
    assert (inputs["cache_length"] == problem.past).all()
    assert inputs["attention_mask"].shape == (2, problem.room)


def test_padding_has_no_position() -> None:
    problem = BY_NAME["decode_padded"]
    inputs = model_inputs(problem, problem.model.weights())
    assert inputs["position_ids"].tolist() == [[14], [11]]
