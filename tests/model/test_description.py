"""Descriptions of layers hold what the PyTorch model has and caches."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
import torch

from lucid_deploy.model.checkpoint import expected_shapes
from lucid_deploy.model.description import describe, layout_of
from lucid_deploy.model.lucid import LucidForCausalLM
from lucid_deploy.model.mixer import layer_steps
from tests.model.config_samples import LLAMA, LUCID, parse

MODELS: dict[str, dict[str, Any]] = {
    "lucid": LUCID,
    "standard with biases": {**LLAMA, "attention_bias": True},
    "lucid over windows": {
        **LUCID,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 3,
    },
}
EACH = pytest.mark.parametrize("name", MODELS)


@EACH
def test_the_weights_of_a_layer_are_all_that_its_mixer_has(name: str) -> None:
    config = parse(MODELS[name])
    for index, layer in enumerate(describe(config, "float32")):
        prefix = f"model.layers.{index}."
        names = [key.removeprefix(prefix) for key in expected_shapes(config) if key.startswith(f"{prefix}self_attn.")]
        assert sorted(layer.weights) == sorted(names)


@EACH
@pytest.mark.parametrize("cache_dtype", ["float32", "float16", "int8"])
def test_the_cache_of_a_layer_is_what_the_model_gives(name: str, cache_dtype: str) -> None:
    config = parse(MODELS[name])
    model = LucidForCausalLM(config).store_cache_as(cache_dtype)
    with torch.no_grad():
        _, present = model(torch.arange(2 * 5).view(2, 5))
    for tensors, layer in zip(present, layout_of(describe(config, cache_dtype)), strict=True):
        for found, tensor in zip(tensors, layer, strict=True):
            assert tuple(found.shape) == tensor.batch_shape(2, 5), tensor.name
            assert str(found.dtype) == f"torch.{tensor.dtype}"


def test_describing_layers_imports_no_torch() -> None:
    code = "import sys; from lucid_deploy.model.layers import layer_kind\n"
    code += "[layer_kind(name) for name in ('lucid', 'standard', 'window', 'delta', 'gated_delta')]\n"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_each_layer_gets_its_own_rotary_tables() -> None:
    config = dataclasses.replace(parse(LLAMA, num_hidden_layers=3), rope_layers=(True, False, True))
    first, bare, last = (step.rope for step in layer_steps(config, torch.tensor([[0, 1, 7]]), torch.float32))
    assert bare is None and first is not None and last is not None and first[0] is last[0]
