"""Rows in the cache and names of weights, as kinds with projections describe them."""

from __future__ import annotations

import pytest

from lucid_deploy.model.layers.rows import projection_names, rows_layout
from lucid_deploy.model.lucid import LucidForCausalLM
from tests.model.config_samples import LLAMA, parse


@pytest.mark.parametrize("changes", [{}, {"attention_bias": True}, {"attention_type": "llama", "use_qknorm": True}])
def test_the_names_are_the_models_own(changes: dict[str, object]) -> None:
    config = parse({**LLAMA, **changes})
    found = {name for name, _ in LucidForCausalLM(config).model.layers[0].named_parameters()}
    assert set(projection_names(config, "self_attn")) == {name for name in found if name.startswith("self_attn.")}


def test_a_row_is_one_key_and_one_value_of_a_head() -> None:
    config = parse(LLAMA)
    layout = rows_layout(config, "float16")
    assert [(tensor.name, tensor.sort, tensor.dtype) for tensor in layout] == [
        ("key", "rows", "float16"),
        ("value", "rows", "float16"),
    ]
    assert {tensor.shape for tensor in layout} == {(config.num_key_value_heads, config.head_dim)}
